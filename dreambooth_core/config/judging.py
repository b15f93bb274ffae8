"""What people decide instead of the rules, or besides them: a chosen checkpoint, votes."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

from dreambooth_core.config.fields import Effect, Section, setting

WEIGHTS_LETTERS = 16
"""The digits of a checkpoint's sha256 that identify it in a choice."""
MAX_REASON = 500


def check_reason(text: str) -> str:
    """Return a reason without spaces around it. Raises ValueError."""
    reason = text.strip()
    if not reason:
        raise ValueError("the reason is empty")
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise ValueError(f"a reason is one line of at most {MAX_REASON} characters")
    return reason


Reason = Annotated[str, AfterValidator(check_reason)]


class Choice(Section):
    """Checkpoint chosen by hand; `dreambooth choose` writes it. Null: the rule selects."""

    step: PositiveInt = setting("Step of the chosen checkpoint.")
    weights: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{WEIGHTS_LETTERS}}}$")] = setting(
        "First digits of its sha256. If the checkpoint has other weights, the rule selects."
    )
    why: Reason = setting("Reason for the choice.")
    who: str = setting("Who chose it.")
    when: str = setting("When (ISO 8601).")


class CompareSettings(Section):
    """What people have to say before a challenger replaces the champion."""

    min_votes: PositiveInt | None = setting(
        "Promote only if N votes prefer one side and people do not prefer the champion. "
        "Null: votes are shown, and decide nothing.",
        effect=Effect.NONE,
        default=None,
    )
