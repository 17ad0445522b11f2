"""Every mistake that a contrastive loss was ever seen to make breaks an invariant."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from advcontrast.functional import nt_xent
from tests.properties.nt_xent_invariants import FAST, SLOW, Case

pytestmark = pytest.mark.nightly  # it tests the property tests

CASES = [
    Case(pairs, features, temperature, seed)
    for seed, (pairs, features, temperature) in enumerate(itertools.product((2, 3, 5), (1, 4, 7), (0.1, 0.5, 5.0)))
]


def wide(z):
    return z if z.dtype == torch.float64 else z.float()


def unit(z):
    largest = z.detach().abs().amax(1, keepdim=True)
    zero = largest == 0
    z = z / largest.masked_fill(zero, 1)
    return (z / z.norm(dim=1, keepdim=True).masked_fill(zero, 1)).masked_fill(zero, 0)


def scores(anchors, rows, temperature):
    return anchors @ rows.T / temperature


def no_self(logits):
    return logits.masked_fill(torch.eye(len(logits), dtype=torch.bool), -math.inf)


def partner_of(logits):
    return torch.arange(len(logits)).roll(len(logits) // 2)


def per_anchor(logits, partner):
    return F.cross_entropy(logits, partner, reduction="none")


def restated(
    z1, z2, temperature, *, tile=None, widen=wide, unit=unit, scores=scores, mask=no_self, partner=partner_of,
    each=per_anchor, reduce=torch.mean, autocast=False,
):  # fmt: skip
    """Compute the loss from parts, each of which a defect may replace; ``tile`` changes nothing."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and torch.is_autocast_enabled("cpu")):
        rows = unit(widen(torch.cat([z1, z2])))
        logits = mask(scores(rows, rows, temperature))
        return reduce(each(logits, partner(logits)))


def own_view_masked(logits):
    view = torch.arange(len(logits)) < len(logits) // 2
    return logits.masked_fill(view[:, None] == view, -math.inf)


def partner_not_in_denominator(logits, partner):
    positive = logits.gather(1, partner[:, None])
    return (logits.scatter(1, partner[:, None], -math.inf).logsumexp(1, keepdim=True) - positive).squeeze(1)


def unshifted_exponential(logits, partner):
    return logits.exp().sum(1).log() - logits.gather(1, partner[:, None]).squeeze(1)


def self_term_subtracted(logits, partner):
    return (logits.exp().sum(1) - logits.diagonal().exp()).log() - logits.gather(1, partner[:, None]).squeeze(1)


def temperature_on_negatives_only(anchors, rows, temperature):
    cosines = anchors @ rows.T
    partner = partner_of(rows)[:, None]
    return (cosines / temperature).scatter(1, partner, cosines.gather(1, partner))


@torch.autocast("cpu", enabled=False)
def tiled(z1, z2, temperature, *, tile=None, shift=True, remainder=True):
    """Compute the loss tile by tile; a defect masks with the row of the tile, or forgets the last, smaller tile."""
    rows = unit(wide(torch.cat([z1, z2])))
    tile = tile or len(rows)
    losses = []
    for start in range(0, len(rows), tile):
        part = rows[start : start + tile]
        itself = torch.arange(len(part)) + (start if shift else 0)
        logits = scores(part, rows, temperature).scatter(1, itself[:, None], -math.inf)
        if remainder or len(part) == tile or start == 0:
            losses.append(per_anchor(logits, partner_of(rows)[start : start + tile]))
    return torch.cat(losses).mean()


def in_place(z1, z2, temperature, *, tile=None):
    return nt_xent(z1 if z1.requires_grad else z1.div_(2), z2, temperature, tile=tile)


def doubled_gradient(z1, z2, temperature, *, tile=None):
    value = nt_xent(z1, z2, temperature, tile=tile)
    return 2 * value - value.detach()


DEFECTS = {
    "first view only as anchor": partial(restated, reduce=lambda each: each[: len(each) // 2].mean()),
    "sum instead of mean": partial(restated, reduce=torch.sum),
    "divided by pairs": partial(restated, reduce=lambda each: 2 * each.mean()),
    "no normalisation": partial(restated, unit=lambda z: z),
    "normalised over the batch": partial(restated, unit=lambda z: F.normalize(z, dim=0)),
    "constant added to the norm": partial(restated, unit=lambda z: z / (z.norm(dim=1, keepdim=True) + 1e-6)),
    "norm clamped": partial(restated, unit=lambda z: F.normalize(z, eps=1e-3)),
    "huge gradient at zero rows": partial(restated, unit=F.normalize),
    "zero rows divided by zero": partial(restated, unit=lambda z: z / z.norm(dim=1, keepdim=True)),
    "gradient straight through the norm": partial(restated, unit=lambda z: z + (unit(z) - z).detach()),
    "itself among the negatives": partial(restated, mask=lambda logits: logits),
    "no negatives of the own view": partial(restated, mask=own_view_masked),
    "partner missing from the denominator": partial(restated, each=partner_not_in_denominator),
    "views expected in turn": partial(restated, partner=lambda logits: torch.arange(len(logits)) ^ 1),
    "most similar row taken for the partner": partial(restated, partner=lambda logits: logits.argmax(1)),
    "multiplied by the temperature": partial(restated, scores=lambda a, b, t: a @ b.T * t),
    "temperature ignored": partial(restated, scores=lambda a, b, t: a @ b.T / 0.5),
    "temperature on negatives only": partial(restated, scores=temperature_on_negatives_only),
    "exponential not shifted": partial(restated, each=unshifted_exponential),
    "self term subtracted": partial(restated, mask=lambda logits: logits, each=self_term_subtracted),
    "computed in the dtype of the input": partial(restated, widen=lambda z: z),
    "float64 not kept": partial(restated, widen=lambda z: z.float()),
    "autocast let in": partial(restated, autocast=True),
    "result in the dtype of the input": lambda z1, *rest, **kw: nt_xent(z1, *rest, **kw).to(z1.dtype),
    "second view detached": lambda z1, z2, *rest, **kw: nt_xent(z1, z2.detach(), *rest, **kw),
    "gradient twice as large": doubled_gradient,
    "no second derivative": lambda z1, z2, temperature, *, tile=64: nt_xent(z1, z2, temperature, tile=tile or 64),
    "mask starts anew in every tile": partial(tiled, shift=False),
    "last tile forgotten": partial(tiled, remainder=False),
    "input changed in place": in_place,
}


def breaks(loss, invariant, case):
    try:
        invariant(loss, case)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_caught(name):
    assert any(breaks(DEFECTS[name], invariant, case) for kind in (FAST, SLOW) for case in CASES for invariant in kind)


@pytest.mark.parametrize("loss", [nt_xent, restated, tiled], ids=lambda loss: loss.__name__)
def test_right_implementation_is_not(loss):
    broken = [(invariant.__name__, case) for invariant in FAST for case in CASES if breaks(loss, invariant, case)]
    assert not broken
    for invariant in SLOW:
        invariant(loss, CASES[4])
