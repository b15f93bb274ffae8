"""A choice by hand puts a checkpoint first, and leaves the rule's answer about it as it is."""

from __future__ import annotations

import pytest

from dreambooth_core.config import Choice
from dreambooth_core.evaluation import by_hand
from dreambooth_core.evaluation.selection import select_best
from dreambooth_core.records import Evaluation
from tests.unit.evaluation.made_up import SELECT, real_row, score_row, scores


def _table() -> Evaluation:
    """The rule selects step 200; step 400 breaks the limit of CLIP-T."""
    rows = [
        score_row("step 0", 0, clip_t=0.30, dino=0.50, pres=0.40),
        score_row("checkpoint-100", 100, clip_t=0.30, dino=0.60, pres=0.45),
        score_row("checkpoint-200", 200, clip_t=0.30, dino=0.70, pres=0.45),
        score_row("checkpoint-400", 400, clip_t=0.20, dino=0.80, pres=0.45),
    ]
    named = [row.model_copy(update={"checkpoint_sha256": f"{row.step:064x}"}) for row in rows]
    return scores([*named, real_row()])


def _choice(step: int, *, weights: str = "0" * 16) -> Choice:
    return Choice(step=step, weights=weights, why="the handle is right.", who="lena", when="now")


@pytest.mark.parametrize(("step", "qualified"), [(100, True), (400, False)])
def test_chosen_checkpoint_is_best_and_qualifies_as_before(step: int, qualified: bool) -> None:
    table = _table()
    by_rule = select_best(table, SELECT)
    chosen = by_hand.with_choice(by_rule, _choice(step), table)
    assert (by_rule.best, chosen.best) == ("checkpoint-200", f"checkpoint-{step}")
    assert chosen.qualified is qualified
    assert chosen.ranked[0].step == step
    assert sorted(one.step for one in chosen.ranked) == [100, 200, 400]
    assert chosen.rule.startswith(f"lena chose checkpoint-{step} by hand: the handle is right. It ")
    assert ("does not qualify" in chosen.rule) is not qualified
    assert chosen.rule.endswith(by_rule.rule)


@pytest.mark.parametrize("choice", [_choice(100, weights="f" * 16), _choice(300)])
def test_choice_for_other_weights_lapses_with_a_sentence(choice: Choice) -> None:
    table = _table()
    by_rule = select_best(table, SELECT)
    chosen = by_hand.with_choice(by_rule, choice, table)
    assert not by_hand.holds(choice, table)
    assert chosen.ranked == by_rule.ranked
    assert chosen.best == "checkpoint-200"
    assert chosen.rule.endswith(f"The choice of step {choice.step} by hand was made for other "
                                "weights; it has lapsed.")  # fmt: skip
