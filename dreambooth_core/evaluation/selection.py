"""The choice of the best checkpoint of a run: the rule of docs/scores.md, as pure functions.

A checkpoint qualifies if it still follows the prompts (CLIP-T) and has not turned the whole class
into the subject (PRES). Of those, the earliest within one standard error of the highest DINO wins
(Breiman et al., Classification and Regression Trees, 1984, section 3.4.3).

Scoring is a race: rounds of images go only to the checkpoints that can still win (`next_round`).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreambooth_core.config import SelectSettings
from dreambooth_core.errors import StageError
from dreambooth_core.numerics.similarity import Floats
from dreambooth_core.records import (
    REAL,
    SCORES,
    STEP_0,
    CheckpointScore,
    Evaluation,
    Interval,
    RankedCheckpoint,
    Selection,
)

_NEAR = 0.9
"""Part of the way from the DINO of step 0 to that of the real photos."""
_Z_95 = 1.96
"""Standard errors that a 95 % interval reaches to each side."""
_LEAST = 1e-6
"""A limit that allows nothing still has a scale."""
_BELOW_EVERY_DINO = 3.0
"""More than two cosines can differ by: it puts every CLIP-T below every DINO."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a qualified checkpoint, with the reasons for the numbers.

    A checkpoint is compared with the base model on the same images: prompts and seeds differ in
    difficulty. From `near_dino` on, a DINO that stops rising is a plateau; below, the training is
    not done.
    """

    base: CheckpointScore
    max_clip_t_loss: float
    max_pres_gain: float
    near_dino: float
    loss_because: str
    gain_because: str

    @property
    def over_all_images(self) -> dict[str, float]:
        """The limits of a complete row, by score."""
        return {
            "clip_t": _mean(self.base.clip_t, row=STEP_0) - self.max_clip_t_loss,
            "pres": _mean(self.base.pres, row=STEP_0) + self.max_pres_gain,
        }

    def min_clip_t(self, row: CheckpointScore) -> float:
        """The lowest CLIP-T that qualifies, over the images of `row`."""
        return _mean_over(_clip_t_of_images(self.base), row.n) - self.max_clip_t_loss

    def max_pres(self, row: CheckpointScore) -> float:
        """The highest PRES that qualifies, over the class images of `row`."""
        return _mean_over(self.base.class_dino, len(row.class_dino)) + self.max_pres_gain


def select_best(evaluation: Evaluation, settings: SelectSettings) -> Selection:
    """The best checkpoint of `evaluation`, or the fallback if none qualifies.

    Raises StageError if the scores lack checkpoints or the row `step 0`.
    """
    rows = {row.name: row for row in evaluation.rows if row.step}
    if not rows:
        raise StageError("the scores lack a checkpoint", hint="run the stages train and evaluate")
    limits = limits_of(evaluation.rows, settings, text_range=evaluation.text_range)
    judged = [_judge(row, limits) for row in rows.values()]
    finalists = _finalists([rows[one.name] for one in judged if one.qualified])
    winner = earliest_within_noise(finalists).name if finalists else None
    ranked = sorted(judged, key=lambda one: (one.name != winner, *_rank(one)))
    return Selection(
        best=ranked[0].name,
        qualified=ranked[0].qualified,
        rule=(
            _sentence_qualified(ranked, limits, rows=rows, finalists=finalists)
            if finalists
            else _sentence_fallback(ranked, limits)
        ),
        ranked=tuple(ranked),
    )


def next_round(rows: Sequence[CheckpointScore], limits: Limits) -> tuple[CheckpointScore, ...]:
    """The rows that get another round of images, in order of steps; none once the race is decided.

    `rows` are the checkpoints that have all rounds so far, in order of steps. The leader has the
    highest DINO of those that qualify so far: a row that breaks a limit within the noise may still
    win, but sends no other away. A row leaves if it breaks a limit by more than the noise, if its
    DINO is lower than the leader's by more than the noise, or if it belongs to the lower half
    (sequential halving: Karnin et al., ICML 2013; paired intervals, as in F-Race: Birattari et al.,
    GECCO 2002). The leader and the earliest row within its noise always stay.
    """
    alive = [row for row in rows if _may_qualify(row, limits)]
    if not alive:
        return ()
    qualified = [row for row in alive if _judge(row, limits).qualified]
    leader = max(qualified or alive, key=_dino)
    if qualified:
        alive = [row for row in alive if row is leader or _may_lead(row, leader)]
    winner = earliest_within_noise([row for row in alive if _dino(row) <= _dino(leader)])
    if winner is leader and winner is alive[0] and leader is max(alive, key=_dino):
        return ()
    # Breaking a limit by little may be noise, so the rows nearest to the limits come next.
    best = sorted(alive, key=lambda row: (_excess(row, limits), -_dino(row)))[: -(-len(rows) // 2)]
    kept = [row for row in alive if row in best or row is winner or row is leader]
    return tuple(kept) if len(kept) > 1 else ()


def further_steps_are_futile(
    rows: Sequence[CheckpointScore], limits: Limits, *, patience: int
) -> bool:
    """Whether to stop the training after the last of `rows`, its checkpoints in order of steps.

    True if the last `patience` checkpoints break a limit by more than the noise although they are
    near the photos, or if none of them has a higher DINO than the best before by more than one
    standard error, while that best is near the photos. Far from the photos nothing is decided:
    DINO often stalls for hundreds of steps before the subject is learnt, and PRES often rises
    first and falls again.
    """
    best, since_best, lost = None, 0, 0
    for row in rows:
        qualifies, near = _may_qualify(row, limits), _dino(row) >= limits.near_dino
        lost = lost + 1 if near and not qualifies else 0
        since_best += 1
        if qualifies and (best is None or _is_better(row, best)):
            best, since_best = row, 0
    plateau = best is not None and _dino(best) >= limits.near_dino and since_best >= patience
    return plateau or lost >= patience


def earliest_within_noise(rows: Sequence[CheckpointScore]) -> CheckpointScore:
    """The earliest row whose DINO is within one standard error of the highest."""
    leader = max(rows, key=_dino)
    for row in rows:
        difference_N = paired_dino(row, leader)
        if row is leader or difference_N.mean() >= -standard_error(difference_N):
            return row
    return leader


def limits_of(
    rows: Sequence[CheckpointScore], settings: SelectSettings, *, text_range: float
) -> Limits:
    """The limits from the rows of the base model, with all images, and of the real photos."""
    base = _row(rows, STEP_0)
    real = next((row for row in rows if row.name == REAL), None)
    pres = _mean(base.pres, row=STEP_0)
    loss = settings.max_clip_t_loss * max(0.0, text_range)
    # A single photo has no pairs and no DINO(real); 1 is its similarity to itself.
    ceiling = real.dino.mean if real is not None and real.dino is not None else 1.0
    what = "DINO of the real photos" if ceiling < 1.0 else "1 (a single photo has no pairs)"
    gain = settings.max_pres_gain * max(0.0, ceiling - pres)
    dino = _mean(base.dino, row=STEP_0)
    return Limits(
        base=base,
        max_clip_t_loss=loss,
        max_pres_gain=gain,
        near_dino=dino + _NEAR * (ceiling - dino),
        loss_because=f"{settings.max_clip_t_loss:g} x the text range of {text_range:.4f}",
        gain_because=f"{settings.max_pres_gain:g} x the way to {what}"
        f"{f', {ceiling:.4f}' if ceiling < 1.0 else ''}",
    )


def merit(judged: RankedCheckpoint) -> float:
    """A number that is higher the earlier the rule ranks a checkpoint, also across runs.

    DINO if the checkpoint qualifies; otherwise its CLIP-T, moved below every DINO.
    """
    return _merit(qualified=judged.qualified, dino=judged.dino, clip_t=judged.clip_t)


def merit_so_far(row: CheckpointScore, limits: Limits) -> float:
    """The merit of a checkpoint whose race is not over: it breaks a limit beyond the noise only."""
    clip_t = _mean(row.clip_t, row=row.name)
    return _merit(qualified=_may_qualify(row, limits), dino=_dino(row), clip_t=clip_t)


def _merit(*, qualified: bool, dino: float, clip_t: float) -> float:
    return dino if qualified else clip_t - _BELOW_EVERY_DINO


def flat_metrics(scores: Evaluation, selection: Selection) -> dict[str, float | int]:
    """The numbers for `dvc metrics`: the best row's means, and the gains over the base model."""
    best = _row(scores.rows, selection.best or STEP_0)
    base = _row(scores.rows, STEP_0)
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


def _row(rows: Sequence[CheckpointScore], name: str) -> CheckpointScore:
    for row in rows:
        if row.name == name:
            return row
    raise StageError(
        f"the scores lack the row {name!r}",
        got=", ".join(row.name for row in rows),
        hint="run the stage evaluate again",
    )


def _mean(interval: Interval | None, *, row: str) -> float:
    if interval is None:
        raise StageError(f"row {row!r} lacks a score that the selection needs")
    return interval.mean


def _judge(row: CheckpointScore, limits: Limits) -> RankedCheckpoint:
    clip_t, pres = _mean(row.clip_t, row=row.name), _mean(row.pres, row=row.name)
    min_clip_t, max_pres = limits.min_clip_t(row), limits.max_pres(row)
    faults: list[str] = []
    if clip_t < min_clip_t:
        faults.append(f"CLIP-T {clip_t:.4f} is below {min_clip_t:.4f}")
    if pres > max_pres:
        faults.append(f"PRES {pres:.4f} is above {max_pres:.4f}")
    kept = f"CLIP-T {clip_t:.4f} >= {min_clip_t:.4f} and PRES {pres:.4f} <= {max_pres:.4f}"
    return RankedCheckpoint(
        name=row.name,
        step=row.step or 0,
        qualified=not faults,
        why=" and ".join(faults) if faults else kept,
        clip_t=clip_t,
        dino=_mean(row.dino, row=row.name),
        pres=pres,
    )


def _rank(judged: RankedCheckpoint) -> tuple[float, int]:
    """Sort qualified checkpoints first, by DINO, then the others, by CLIP-T; ties by step."""
    return (-merit(judged), judged.step)


def paired_dino(row: CheckpointScore, other: CheckpointScore) -> Floats:
    """DINO of `row` minus that of `other`, image by image, over the rounds that both have."""
    return _paired([image.dino for image in row.images], [image.dino for image in other.images])


def standard_error(values_N: Floats) -> float:
    """The standard error of the mean of `values`; infinite for a single value."""
    count = len(values_N)
    return float(values_N.std(ddof=1) / np.sqrt(count)) if count > 1 else np.inf


def _dino(row: CheckpointScore) -> float:
    return _mean(row.dino, row=row.name)


def _may_qualify(row: CheckpointScore, limits: Limits) -> bool:
    """Whether CLIP-T and PRES are within the limits, or outside by less than the noise."""
    change_N = _paired(_clip_t_of_images(row), _clip_t_of_images(limits.base))
    gain_K = _paired(row.class_dino, limits.base.class_dino)
    return _upper(change_N) >= -limits.max_clip_t_loss and -_upper(-gain_K) <= limits.max_pres_gain


def _excess(row: CheckpointScore, limits: Limits) -> float:
    """How far the means break the limits, in multiples of what the limits allow; 0 within them."""
    clip_t, pres = _mean(row.clip_t, row=row.name), _mean(row.pres, row=row.name)
    lost = (limits.min_clip_t(row) - clip_t) / max(limits.max_clip_t_loss, _LEAST)
    gained = (pres - limits.max_pres(row)) / max(limits.max_pres_gain, _LEAST)
    return max(0.0, lost, gained)


def _may_lead(row: CheckpointScore, leader: CheckpointScore) -> bool:
    """Whether the row's DINO is lower than the leader's by less than the noise."""
    return _upper(paired_dino(row, leader)) >= 0.0


def _upper(values_N: Floats) -> float:
    """The upper end of the 95 % interval of the mean."""
    return float(values_N.mean()) + _Z_95 * standard_error(values_N)


def _paired(values: Sequence[float], others: Sequence[float]) -> Floats:
    """Differences, image by image, over the rounds that both rows have."""
    return np.array([one - other for one, other in zip(values, others, strict=False)])


def _clip_t_of_images(row: CheckpointScore) -> list[float]:
    return [image.clip_t for image in row.images]


def _mean_over(values: Sequence[float], count: int) -> float:
    return statistics.fmean(values[:count])


def _is_better(row: CheckpointScore, best: CheckpointScore) -> bool:
    """Whether the row's DINO is higher by more than one standard error."""
    difference_N = paired_dino(row, best)
    return float(difference_N.mean()) > standard_error(difference_N)


def _finalists(qualified: Sequence[CheckpointScore]) -> list[CheckpointScore]:
    """The qualified rows with the most images: those that stayed in the race to its end."""
    most = max((row.n for row in qualified), default=0)
    return [row for row in qualified if row.n == most]


def _sentence_qualified(
    ranked: Sequence[RankedCheckpoint],
    limits: Limits,
    *,
    rows: Mapping[str, CheckpointScore],
    finalists: Sequence[CheckpointScore],
) -> str:
    best, num_qualified = ranked[0], sum(judged.qualified for judged in ranked)
    row = rows[best.name]
    min_clip_t, max_pres = limits.min_clip_t(row), limits.max_pres(row)
    leader = max(finalists, key=_dino)
    if best.name == leader.name:
        reason = f"has the highest DINO, {best.dino:.4f},"
    else:
        noise = standard_error(paired_dino(row, leader))
        reason = (
            f"is the earliest whose DINO, {best.dino:.4f}, is within one standard error "
            f"({noise:.4f}) of the highest, {_dino(leader):.4f} of {leader.name},"
        )
    return (
        f"{best.name} {reason} among the {num_qualified} of {len(ranked)} checkpoints that "
        f"qualify: its CLIP-T of {best.clip_t:.4f} is at least {min_clip_t:.4f} (step 0's "
        f"{min_clip_t + limits.max_clip_t_loss:.4f} on the same images minus "
        f"{limits.loss_because}), and its PRES of {best.pres:.4f} is at most {max_pres:.4f} "
        f"(step 0's {max_pres - limits.max_pres_gain:.4f} plus {limits.gain_because})."
    )


def _sentence_fallback(ranked: Sequence[RankedCheckpoint], limits: Limits) -> str:
    best, complete = ranked[0], limits.over_all_images
    return (
        f"None of the {len(ranked)} checkpoints qualifies: each has a CLIP-T below "
        f"{complete['clip_t']:.4f} (step 0's minus {limits.loss_because}) or a PRES above "
        f"{complete['pres']:.4f} (step 0's plus {limits.gain_because}), step 0 being compared on "
        f"the same images. {best.name} is the fallback, as it has "
        f"the highest CLIP-T, {best.clip_t:.4f}; it is never promoted."
    )
