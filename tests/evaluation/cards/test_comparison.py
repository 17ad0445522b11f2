"""Cards compared with each other, and in a table."""

import itertools
import math
import re
from fractions import Fraction

import pytest
import torch

from advcontrast import PGDAttack
from advcontrast.evaluation.cards.card import ResultCard
from advcontrast.evaluation.cards.comparison import DiscordantPairs, compare_cards, markdown_table, mcnemar


def runs(*texts):
    """Return verdicts, written as + and -."""
    return [torch.tensor([mark == "+" for mark in text]) for text in texts]


def card(name="DS", **changes):
    fields = {
        "name": name,
        "verdicts": {"TA": runs("++-+"), "RA": runs("+--+")},
        "seeds": [0],
        "data": "four",
        "fingerprint": "0" * 64,
        "dtype": "float32",
        "attacks": {"RA": PGDAttack(steps=20)},
    }
    return ResultCard(**{**fields, **changes})


# Two cards


def test_means_and_difference():
    found = compare_cards(card(), card(verdicts={"TA": runs("--++")})).metrics["TA"]
    assert (found.mean_a, found.mean_b, found.difference) == (0.75, 0.5, -0.25)


def test_flips_are_counted_in_both_directions():
    (flips,) = compare_cards(card(), card(verdicts={"TA": runs("--++")})).metrics["TA"].flips
    assert flips == DiscordantPairs(only_a=2, only_b=1, p_value=1.0)


def test_runs_are_paired_in_order():
    a = card(verdicts={"TA": runs("++++", "----")}, seeds=[0, 1])
    b = card(verdicts={"TA": runs("++--", "---+")}, seeds=[5, 6])
    flips = compare_cards(a, b).metrics["TA"].flips
    assert [(pair.only_a, pair.only_b) for pair in flips] == [(2, 0), (0, 1)]


def test_only_common_metrics_are_compared_the_usual_ones_first():
    a = card(verdicts={"fog": runs("++++"), "TA": runs("++++"), "RA": runs("++++"), "a": runs("++++")})
    b = card(verdicts={"fog": runs("++++"), "TA": runs("++++"), "RA": runs("++++"), "b": runs("++++")})
    assert list(compare_cards(a, b).metrics) == ["TA", "RA", "fog"]


def test_attack_behind_a_metric_of_one_card_alone_does_not_matter():
    b = card(verdicts={"TA": runs("++++")}, attacks={})
    assert list(compare_cards(card(), b).metrics) == ["TA"]


def test_settings_besides_the_attack_may_differ():
    a, b = card(settings={"protocol": "SLF"}), card(settings={"protocol": "ALF"})
    assert compare_cards(a, b).metrics["TA"].difference == 0


def test_comparison_can_be_read():
    a = card(verdicts={"TA": runs("++++", "---+"), "AUG": runs("++++", "++++")}, seeds=[0, 1])
    b = card("S2S", verdicts={"TA": runs("+---", "---+"), "AUG": runs("----", "++++")}, seeds=[0, 1])
    assert str(compare_cards(a, b)).split("\n") == [
        "a: DS",
        "b: S2S",
        "TA    62.50% ->  25.00%  (-37.50)  only a correct 3, only b correct 0, p = 0.25",
        "                                   only a correct 0, only b correct 0, p = 1",
        "AUG  100.00% ->  50.00%  (-50.00)  only a correct 4, only b correct 0, p = 0.12",
        "                                   only a correct 0, only b correct 0, p = 1",
    ]


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        (
            {"data": "other", "fingerprint": "1" * 64},
            "data 'four (0000000000000000)' and 'other (1111111111111111)'",
        ),
        ({"verdicts": {"TA": runs("++++++")}}, "images 4 and 6"),
        ({"verdicts": {"TA": runs("++++", "++++")}, "seeds": [0, 1]}, "runs 1 and 2"),
        ({"attacks": {"RA": PGDAttack(steps=40)}}, "RA.steps 20 and 40"),
        (
            {"attacks": {"RA": PGDAttack(steps=40, eps=0.5, restarts=2)}},
            f"RA.eps {8 / 255} and 0.5; RA.restarts None and 2; RA.steps 20 and 40",
        ),
        ({"attacks": {"RA": {"type": "PGDAttack"}}}, f"RA.eps {8 / 255} and None; "),
        ({"attacks": {"RA": PGDAttack(steps=20), "TA": "noise"}}, "TA None and 'noise'"),
        ({"fingerprint": "1" * 64, "attacks": {"RA": PGDAttack(steps=1)}}, "'four (1111111111111111)'; RA.steps 20"),
    ],
)
def test_cards_of_other_evaluations_are_refused_and_all_that_differs_is_listed(changes, differing):
    pattern = "compare_cards: expected cards of the same evaluation, got .*" + re.escape(differing)
    with pytest.raises(ValueError, match=pattern):
        compare_cards(card(), card(**changes))


def test_the_same_data_under_another_name_are_the_same():
    assert compare_cards(card(), card(data="quatre")).metrics["TA"].difference == 0


def test_cards_without_a_common_metric():
    message = "compare_cards: expected cards with a common metric"
    with pytest.raises(ValueError, match=re.escape(message)):
        compare_cards(card(), card(verdicts={"fog": runs("++++")}))


def test_only_cards_are_compared():
    message = "compare_cards: expected each of cards"
    with pytest.raises(TypeError, match=re.escape(message)):
        compare_cards(card(), "card.json")


# McNemar's test


def test_p_value_counts_the_throws_that_are_at_least_as_uneven():
    for only_a, only_b in itertools.product(range(6), repeat=2):
        n = only_a + only_b
        throws = [abs(2 * sum(coins) - n) for coins in itertools.product((0, 1), repeat=n)]
        uneven = sum(difference >= abs(only_a - only_b) for difference in throws)
        assert mcnemar(only_a, only_b) == uneven / len(throws), (only_a, only_b)


@pytest.mark.parametrize(("only_a", "only_b"), [(300, 200), (900, 1000), (0, 1000), (512, 511), (1500, 1300)])
def test_p_value_is_exact_to_the_last_digits_for_many_flips(only_a, only_b):
    n = only_a + only_b
    exact = Fraction(2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)), 2**n)
    assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, float(exact)), rel=1e-15)


def test_p_value_of_a_whole_large_data_set_does_not_overflow():
    assert mcnemar(0, 50_000) == 0.0
    # The normal approximation: 500 flips of 50,000 are 500 / sqrt(50,000) deviations, less the continuity correction.
    assert mcnemar(24_750, 25_250) == pytest.approx(math.erfc(499 / math.sqrt(2 * 50_000)), rel=1e-3)


def test_no_flips_prove_nothing():
    assert mcnemar(0, 0) == 1.0


# The table


def test_table_has_a_row_for_each_card():
    b = card("S2S", verdicts={"TA": runs("+++-", "++++")}, seeds=[0, 1])
    assert markdown_table([card(), b]).split("\n") == [
        "| name | TA | RA (PGDAttack, linf, eps 8/255, 20 steps) |",
        "| --- | ---: | ---: |",
        "| DS | 75.00 | 50.00 |",
        "| S2S | 87.50 ± 17.68 |  |",
    ]


def test_other_metrics_have_their_columns_behind_the_usual_ones():
    verdicts = {name: runs("++--") for name in ("fog", "APGD", "TA")}
    header = markdown_table([card(verdicts=verdicts, attacks={})]).split("\n")[0]
    assert header == "| name | TA | APGD | fog |"


def header_of(*attacks):
    return markdown_table([card(attacks={"RA": attack}) for attack in attacks]).split(" |\n")[0].split(" | ")[2]


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (PGDAttack(eps=0.5, norm="l2", steps=7, restarts=3), "PGDAttack, l2, eps 0.5, 7 steps, 3 restarts"),
        (PGDAttack(eps=1, norm="l2", steps=0), "PGDAttack, l2, eps 1"),
        (PGDAttack(eps=0, steps=2), "PGDAttack, linf, eps 0, 2 steps"),
        (PGDAttack(eps=0.031, steps=2), "PGDAttack, linf, eps 0.031, 2 steps"),
        ({"type": "AutoAttack", "version": "plus", "eps": 4 / 255}, "AutoAttack, plus, eps 4/255"),
        ("a black box", "a black box"),
        ({"queries": 5000}, "described in the cards"),
    ],
)
def test_header_names_the_attack(attack, words):
    assert header_of(attack, attack) == f"RA ({words})"


def test_header_marks_attacks_that_differ():
    assert header_of(PGDAttack(steps=20), PGDAttack(steps=20, restarts=2)) == "RA (attacks differ)"


def test_names_cannot_break_the_table():
    row = markdown_table([card("a|b\n c")]).split("\n")[2]
    assert row == "| a\\|b c | 75.00 | 50.00 |"


def test_table_of_nothing():
    message = "markdown_table: expected at least one card"
    with pytest.raises(ValueError, match=re.escape(message)):
        markdown_table([])


def test_table_of_something_else():
    message = "markdown_table: expected each of cards"
    with pytest.raises(TypeError, match=re.escape(message)):
        markdown_table([card(), {}])
