"""The choice of the best checkpoint of a run: the rule of docs/scores.md, as pure functions.

A checkpoint qualifies if it still follows the prompts (CLIP-T) and has not turned the whole class
into the subject (PRES). The highest DINO among those wins; the earlier step breaks ties.
"""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config import SelectSettings
from dreambooth_core.errors import StageError
from dreambooth_core.records import (
    REAL,
    SCORES,
    STEP_0,
    Interval,
    RankedCheckpoint,
    ScoreRow,
    Scores,
    Selection,
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a qualified checkpoint, with the reasons for the numbers."""

    min_clip_t: float
    max_pres: float
    clip_t_because: str
    pres_because: str


def select_best(scores: Scores, settings: SelectSettings) -> Selection:
    """The best checkpoint of `scores`, or the fallback if none qualifies.

    Raises StageError if the scores lack checkpoints or the row `step 0`.
    """
    checkpoints = [row for row in scores.rows if row.step]
    if not checkpoints:
        raise StageError("the scores lack a checkpoint", hint="run the stages train and evaluate")
    limits = limits_of(scores, settings)
    ranked = sorted((_judge(row, limits) for row in checkpoints), key=_rank)
    best = ranked[0]
    sentence = _sentence_qualified if best.qualified else _sentence_fallback
    return Selection(
        best=best.name,
        qualified=best.qualified,
        rule=sentence(best, limits, ranked=ranked),
        ranked=tuple(ranked),
    )


def limits_of(scores: Scores, settings: SelectSettings) -> Limits:
    """The limits from the rows of the base model and the real photos."""
    base = _row(scores, STEP_0)
    real = next((row for row in scores.rows if row.name == REAL), None)
    clip_t, pres = _mean(base.clip_t, row=STEP_0), _mean(base.pres, row=STEP_0)
    loss = settings.max_clip_t_loss * max(0.0, scores.text_range)
    # A single photo has no pairs and no DINO(real); 1 is its similarity to itself.
    ceiling = real.dino.mean if real is not None and real.dino is not None else 1.0
    what = "DINO of the real photos" if ceiling < 1.0 else "1 (a single photo has no pairs)"
    gain = settings.max_pres_gain * max(0.0, ceiling - pres)
    return Limits(
        min_clip_t=clip_t - loss,
        max_pres=pres + gain,
        clip_t_because=f"step 0's {clip_t:.4f} minus {settings.max_clip_t_loss:g} x the text "
        f"range of {scores.text_range:.4f}",
        pres_because=f"step 0's {pres:.4f} plus {settings.max_pres_gain:g} x the way to {what}"
        f"{f', {ceiling:.4f}' if ceiling < 1.0 else ''}",
    )


def flat_metrics(scores: Scores, selection: Selection) -> dict[str, float | int]:
    """The numbers for `dvc metrics`: the best row's means, and the gains over the base model."""
    best = _row(scores, selection.best or STEP_0)
    base = _row(scores, STEP_0)
    metrics: dict[str, float | int] = {
        "best_step": best.step or 0,
        "qualified": int(selection.qualified),
        "text_range": scores.text_range,
    }
    for name in SCORES:
        value: Interval | None = getattr(best, name)
        before: Interval | None = getattr(base, name)
        if value is not None and before is not None:
            metrics[name] = value.mean
            metrics[f"{name}_minus_step_0"] = value.mean - before.mean
    return metrics


def _row(scores: Scores, name: str) -> ScoreRow:
    for row in scores.rows:
        if row.name == name:
            return row
    raise StageError(
        f"the scores lack the row {name!r}",
        got=", ".join(row.name for row in scores.rows),
        hint="run the stage evaluate again",
    )


def _mean(interval: Interval | None, *, row: str) -> float:
    if interval is None:
        raise StageError(f"row {row!r} lacks a score that the selection needs")
    return interval.mean


def _judge(row: ScoreRow, limits: Limits) -> RankedCheckpoint:
    clip_t, pres = _mean(row.clip_t, row=row.name), _mean(row.pres, row=row.name)
    faults: list[str] = []
    if clip_t < limits.min_clip_t:
        faults.append(f"CLIP-T {clip_t:.4f} is below {limits.min_clip_t:.4f}")
    if pres > limits.max_pres:
        faults.append(f"PRES {pres:.4f} is above {limits.max_pres:.4f}")
    kept = f"CLIP-T {clip_t:.4f} >= {limits.min_clip_t:.4f} and PRES {pres:.4f} <= "
    return RankedCheckpoint(
        name=row.name,
        step=row.step or 0,
        qualified=not faults,
        why=" and ".join(faults) if faults else f"{kept}{limits.max_pres:.4f}",
        clip_t=clip_t,
        dino=_mean(row.dino, row=row.name),
        pres=pres,
    )


def _rank(judged: RankedCheckpoint) -> tuple[bool, float, int]:
    """Sort qualified checkpoints first, by DINO, then the others, by CLIP-T; ties by step."""
    value = judged.dino if judged.qualified else judged.clip_t
    return (not judged.qualified, -value, judged.step)


def _sentence_qualified(
    best: RankedCheckpoint, limits: Limits, *, ranked: list[RankedCheckpoint]
) -> str:
    qualified = [judged for judged in ranked if judged.qualified]
    ties = sum(judged.dino == best.dino for judged in qualified) - 1
    tie = f" (the earliest of {ties + 1} with that DINO)" if ties else ""
    return (
        f"{best.name} has the highest DINO, {best.dino:.4f}, of the {len(qualified)} of "
        f"{len(ranked)} checkpoints that qualify{tie}: its CLIP-T of {best.clip_t:.4f} is at least "
        f"{limits.min_clip_t:.4f} ({limits.clip_t_because}), and its PRES of {best.pres:.4f} is at "
        f"most {limits.max_pres:.4f} ({limits.pres_because})."
    )


def _sentence_fallback(
    best: RankedCheckpoint, limits: Limits, *, ranked: list[RankedCheckpoint]
) -> str:
    return (
        f"None of the {len(ranked)} checkpoints qualifies: each has a CLIP-T below "
        f"{limits.min_clip_t:.4f} ({limits.clip_t_because}) or a PRES above "
        f"{limits.max_pres:.4f} ({limits.pres_because}). {best.name} is the fallback, as it has "
        f"the highest CLIP-T, {best.clip_t:.4f}; it is never promoted."
    )
