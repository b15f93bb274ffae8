"""A checkpoint that a person chose instead of the rule's."""

from __future__ import annotations

from dreambooth_core.config import WEIGHTS_LETTERS, Choice
from dreambooth_core.records import CheckpointScore, Evaluation, Selection


def with_choice(selection: Selection, choice: Choice, evaluation: Evaluation) -> Selection:
    """The selection with the chosen checkpoint first; the rule's if it has other weights by now.

    Whether the checkpoint qualifies stays the rule's answer, so that a choice promotes nothing that
    the comparison would refuse.
    """
    row = _row_of(choice, evaluation)
    if row is None:
        lapsed = (
            f"The choice of step {choice.step} by hand was made for other weights; it has lapsed."
        )
        return selection.model_copy(update={"rule": f"{selection.rule} {lapsed}"})
    chosen = next(one for one in selection.ranked if one.name == row.name)
    others = tuple(one for one in selection.ranked if one is not chosen)
    verb = "qualifies" if chosen.qualified else "does not qualify"
    return Selection(
        best=chosen.name,
        qualified=chosen.qualified,
        rule=(
            f"{choice.who} chose {chosen.name} by hand: {choice.why.rstrip('.')}. It {verb}: "
            f"{chosen.why}; its DINO is {chosen.dino:.4f}. Without the choice: {selection.rule}"
        ),
        ranked=(chosen, *others),
    )


def holds(choice: Choice, evaluation: Evaluation) -> bool:
    """Whether the scored checkpoints have the weights that the choice was made for."""
    return _row_of(choice, evaluation) is not None


def _row_of(choice: Choice, evaluation: Evaluation) -> CheckpointScore | None:
    for row in evaluation.rows:
        digits = (row.checkpoint_sha256 or "")[:WEIGHTS_LETTERS]
        if (row.step, digits) == (choice.step, choice.weights):
            return row
    return None
