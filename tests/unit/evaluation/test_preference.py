"""What votes say: Wilson's interval, ties left out, and the rule of `compare.min_votes`."""

from __future__ import annotations

import pytest

from dreambooth_core.evaluation.comparison import VoteRule, compare
from dreambooth_core.evaluation.preference import Preference, wilson
from tests.unit.evaluation.made_up import SELECT
from tests.unit.evaluation.test_comparison import NOISE, contender


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (7, 10, 0.3968, 0.8922),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_is_wilsons(wins: int, count: int, low: float, high: float) -> None:
    found = wilson(wins, count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.mean == wins / count


def test_ties_count_for_neither_side() -> None:
    assert Preference(wins=7, losses=3, ties=90).share == wilson(7, 10)
    assert Preference(ties=4).share is None
    assert Preference(ties=4).in_words() == "0 votes and 4 ties"
    said = "the challenger won 7 of 10 votes and 1 ties (95 % interval 40 % to 89 %)"
    assert Preference(wins=7, losses=3, ties=1).in_words() == said


def _verdict(preference: Preference | None, *, dino: float = 0.1):
    rule = None if preference is None else VoteRule(preference=preference, min_votes=10)
    better = contender("version 2", dino=lambda i: dino)
    return compare(better, contender("version 1"), settings=SELECT, noise=NOISE, votes=rule)


def test_without_the_rule_scores_alone_decide() -> None:
    assert _verdict(None).promote
    assert "People" not in _verdict(None).why


def test_too_few_votes_keep_the_champion() -> None:
    verdict = _verdict(Preference(wins=9, ties=30))
    assert not verdict.promote
    assert "asks for 10 votes that prefer one side, and so far there are 9" in verdict.why


@pytest.mark.parametrize(("wins", "promote"), [(1, False), (2, True), (5, True), (10, True)])
def test_champion_stays_only_if_people_prefer_it_beyond_the_noise(wins: int, promote: bool) -> None:
    """The upper bounds are 0.404 for 1 of 10 votes and 0.510 for 2 of 10."""
    verdict = _verdict(Preference(wins=wins, losses=10 - wins))
    assert verdict.promote is promote
    assert f"the challenger won {wins} of 10 votes" in verdict.why
    assert ("people prefer the champion" in verdict.why) is not promote


def test_votes_promote_nothing_that_the_scores_refuse() -> None:
    verdict = _verdict(Preference(wins=50), dino=0.0)
    assert not verdict.promote
    assert "within the noise" in verdict.why
