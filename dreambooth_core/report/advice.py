"""Whether to use a checkpoint, in words and with the numbers that decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dreambooth_core.records import Interval, ScoreRow

USE, CARE, REFUSE = "Use it", "Use with care", "Do not use"
_NEAR, _FAR = 0.8, 0.5
"""Parts of the way from the base model's DINO to the photos': from the first on, pictures look like
the subject; below the second, they do not."""
_PROMPT_LOST = 0.5
"""The part of the text range whose loss means that the pictures no longer follow the prompts."""
_WITHIN = " The limit lies within the noise."

Mark = Literal["good", "care", "bad"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question about a checkpoint: the answer, and the numbers behind it.

    `fault` completes the headline if this check decides it.
    """

    mark: Mark
    answer: str
    numbers: str
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The advice: a headline, and the checks that decided, the worst first."""

    headline: str
    checks: tuple[Check, ...]
    keeps_class: bool = True
    """Whether the class is still drawn as a class."""

    @property
    def mark(self) -> Mark:
        """The worst mark of the checks."""
        return self.checks[0].mark


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The records that decide: the scores of a checkpoint on fresh seeds, and what they mean.

    `limits` are those of the selection, by score; `is_qualified` is its outcome.
    """

    row: ScoreRow
    base: ScoreRow
    real: ScoreRow | None
    limits: Mapping[str, float]
    text_range: float
    is_qualified: bool
    class_noun: str


def advise(evidence: Evidence | None) -> Advice:
    """The advice on a checkpoint; None stands for a run that selected none."""
    if evidence is None:
        none = Check(
            mark="bad",
            answer="No checkpoint was selected.",
            numbers="The section on the choice says why.",
            fault="there is no checkpoint",
        )
        return Advice(headline=f"{REFUSE}: {none.fault}", checks=(none,))
    kept = _class(evidence)
    answers = (_subject(evidence), _prompt(evidence), kept, _limits(evidence))
    order = ("bad", "care", "good")
    found = [answer for answer in answers if answer is not None]
    checks = tuple(sorted(found, key=lambda check: order.index(check.mark)))
    keeps_class = kept is None or kept.mark == "good"
    return Advice(headline=_headline(checks), checks=checks, keeps_class=keeps_class)


def _headline(checks: Sequence[Check]) -> str:
    worst = checks[0].mark
    if worst == "good":
        return USE
    faults = " and ".join(check.fault for check in checks if check.mark == worst)
    return f"{REFUSE if worst == 'bad' else CARE}: {faults}"


def _subject(evidence: Evidence) -> Check | None:
    dino, base = evidence.row.dino, evidence.base.dino
    if dino is None or base is None:
        return None
    photos = evidence.real.dino.mean if evidence.real and evidence.real.dino else None
    numbers = f"DINO {_spell(dino)}; base model {base.mean:.3f}"
    if dino.low <= base.mean:
        return _unlike(f"{numbers}: no more than the noise.")
    if photos is None or photos <= base.mean:
        return Check(
            mark="care",
            answer="It moved towards the photos; how near it came cannot be measured.",
            numbers=f"{numbers}. The photos give no ceiling: one photo has no other to compare "
            "with, and photos that differ too much are no measure.",
            fault="how near it came to the subject cannot be measured with these photos",
        )
    way = (dino.mean - base.mean) / (photos - base.mean)
    numbers = f"{_percent(way)} of the way from the base model to the photos: {numbers}, photos "
    numbers += f"{photos:.3f}."
    if way < _FAR:
        return _unlike(numbers)
    if way < _NEAR:
        return Check(
            mark="care",
            answer="The subject is recognisable, not exact.",
            numbers=numbers,
            fault="the pictures are only partly like the subject",
        )
    return Check(mark="good", answer="It looks like the subject.", numbers=numbers)


def _unlike(numbers: str) -> Check:
    return Check(
        mark="bad",
        answer="It does not look like the subject.",
        numbers=numbers,
        fault="nothing here looks like the photos",
    )


def _prompt(evidence: Evidence) -> Check | None:
    clip_t, base, limit = evidence.row.clip_t, evidence.base.clip_t, evidence.limits.get("clip_t")
    if clip_t is None or base is None or limit is None:
        return None
    numbers = f"CLIP-T {_spell(clip_t)}; base model {base.mean:.3f}, lowest allowed {limit:.3f}."
    if evidence.text_range > 0 and clip_t.high < base.mean - _PROMPT_LOST * evidence.text_range:
        return Check(
            mark="bad",
            answer="It ignores the prompts.",
            numbers=numbers,
            fault="the pictures ignore the prompts",
        )
    if clip_t.high < limit:
        return Check(
            mark="care",
            answer="It follows the prompts less well than the base model.",
            numbers=numbers,
            fault="it follows the prompts less well than the base model",
        )
    within = _WITHIN if clip_t.mean < limit else ""
    return Check(mark="good", answer="It follows the prompts.", numbers=numbers + within)


def _class(evidence: Evidence) -> Check | None:
    pres, base, limit = evidence.row.pres, evidence.base.pres, evidence.limits.get("pres")
    if pres is None or base is None or limit is None:
        return None
    noun = evidence.class_noun
    numbers = f"PRES {_spell(pres)}; base model {base.mean:.3f}, highest allowed {limit:.3f}."
    if pres.low > limit:
        return Check(
            mark="care",
            answer=f"It draws the subject for any {noun}.",
            numbers=numbers,
            fault=f"it draws the subject for any {noun}",
        )
    within = _WITHIN if pres.mean > limit else ""
    return Check(
        mark="good", answer=f"It still knows other kinds of {noun}.", numbers=numbers + within
    )


def _limits(evidence: Evidence) -> Check | None:
    if evidence.is_qualified:
        return None
    return Check(
        mark="care",
        answer="No checkpoint kept to the limits of the selection.",
        numbers="This one is the fallback, and is never promoted.",
        fault="no checkpoint kept to the limits of the selection",
    )


def _spell(value: Interval) -> str:
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"
