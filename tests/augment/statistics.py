"""Two figures that tell whether two samples come from one distribution."""

import math

import torch

N = 20_000
KS_LIMIT = 0.0195  # two samples of 20 000 from one distribution differ by more once in a thousand times


def ks(a, b):
    """Return the two-sample Kolmogorov-Smirnov statistic: the largest gap between the distribution functions."""
    points = torch.cat([a, b])
    below = [torch.searchsorted(sample.sort().values, points, right=True) / len(sample) for sample in (a, b)]
    return (below[0] - below[1]).abs().max().item()


def sigmas(hits, probability):
    """Return how many standard deviations the number of hits is away from a binomial distribution's mean."""
    return abs(hits.sum().item() - len(hits) * probability) / math.sqrt(len(hits) * probability * (1 - probability))
