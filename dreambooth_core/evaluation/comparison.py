"""Challenger against champion, paired by prompt and seed: promote only beyond the noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dreambooth_core.config import SelectSettings
from dreambooth_core.errors import StageError
from dreambooth_core.evaluation.preference import Preference
from dreambooth_core.numerics.similarity import mean_estimate
from dreambooth_core.records import CheckpointScore, Harness, ImageScore, Interval, Verdict

_READERS: dict[str, Callable[[ImageScore], float]] = {
    "dino": lambda image: image.dino,
    "clip_t": lambda image: image.clip_t,
    "clip_i": lambda image: image.clip_i,
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One side of a comparison: a registered version, its row, and the harness of the row."""

    name: str
    qualified: bool
    row: CheckpointScore
    harness: Harness


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The bootstrap of the difference: resamples, seed, and the text range of step 0."""

    samples: int
    seed: int
    text_range: float


@dataclass(frozen=True, kw_only=True)
class VoteRule:
    """What people prefer so far, and how many votes have to decide before a promotion."""

    preference: Preference
    min_votes: int


def compare(
    challenger: Contender,
    champion: Contender | None,
    *,
    settings: SelectSettings,
    noise: Noise,
    votes: VoteRule | None = None,
) -> Verdict:
    """Decide whether the challenger replaces the champion, with the reason as a sentence.

    Raises StageError if the prompts, seeds or scorers of the two differ.
    """
    difference: dict[str, Interval] = {}
    if champion is None:
        promote, why = challenger.qualified, _why_first(challenger)
    elif challenger.name == champion.name:
        promote, why = False, f"{challenger.name} is already the champion."
    else:
        difference = paired_difference(challenger, champion, noise=noise)
        tolerance = settings.max_clip_t_loss * max(0.0, noise.text_range)
        promote, why = _decide(challenger, champion, difference=difference, tolerance=tolerance)
        if promote and votes is not None:
            promote, why = _ask_people(challenger, champion, votes, why=why)
    return Verdict(
        challenger=challenger.name,
        champion=None if champion is None else champion.name,
        promote=promote,
        why=why,
        difference=difference,
    )


def paired_difference(
    challenger: Contender, champion: Contender, *, noise: Noise
) -> dict[str, Interval]:
    """Mean of challenger minus champion over the pairs, for DINO, CLIP-T and CLIP-I.

    Raises StageError if harnesses or pairs differ.
    """
    _check_same_harness(challenger, champion)
    ours, theirs = _by_pair(challenger.row), _by_pair(champion.row)
    if ours.keys() != theirs.keys() or not ours:
        raise StageError(
            "the images of challenger and champion do not pair by prompt and seed",
            got=f"{len(ours)} and {len(theirs)} images, {len(ours.keys() & theirs.keys())} pairs",
            hint="score both again with the same settings",
        )
    pairs = sorted(ours)
    return {
        score: Interval(
            **mean_estimate(
                np.array([read(ours[pair]) - read(theirs[pair]) for pair in pairs]),
                samples=noise.samples,
                seed=noise.seed,
            )._asdict()
        )
        for score, read in _READERS.items()
    }


def _why_first(challenger: Contender) -> str:
    if challenger.qualified:
        return (
            f"{challenger.name} becomes the first champion: it qualified in its run, and there is "
            "none to compare it with."
        )
    return (
        f"{challenger.name} stays a challenger: no checkpoint of its run qualified, so it is "
        "never promoted, although there is no champion yet."
    )


def _decide(
    challenger: Contender,
    champion: Contender,
    *,
    difference: dict[str, Interval],
    tolerance: float,
) -> tuple[bool, str]:
    dino, clip_t = difference["dino"], difference["clip_t"]
    count = len(challenger.row.images)
    numbers = (
        f"over {count} pairs of the same prompt and seed, DINO differs by {_spell(dino)} and "
        f"CLIP-T by {_spell(clip_t)}"
    )
    versus = f"{challenger.name} stays a challenger to {champion.name}: {numbers}"
    if not challenger.qualified:
        return False, f"{versus}, but no checkpoint of its run qualified, so it is never promoted."
    if dino.high < 0:
        return False, f"{versus}, so it is less like the subject, by more than the noise."
    if dino.low <= 0:
        return False, f"{versus}, so the difference in DINO is within the noise."
    if clip_t.high < -tolerance:
        return False, (
            f"{versus}, so it is more like the subject but follows the prompts worse by more than "
            f"the tolerated {tolerance:.4f}, beyond the noise."
        )
    return True, (
        f"{challenger.name} replaces {champion.name}: {numbers}, so it is more like the subject by "
        f"more than the noise, and its CLIP-T is not worse than tolerated ({tolerance:.4f})."
    )


def _ask_people(
    challenger: Contender, champion: Contender, votes: VoteRule, *, why: str
) -> tuple[bool, str]:
    """Whether people agree with a promotion that the scores allow."""
    stays = (
        f"{challenger.name} stays a challenger to {champion.name}: its scores are better by more "
        "than the noise, but"
    )
    said = votes.preference.in_words()
    if votes.preference.decided < votes.min_votes:
        return False, (
            f"{stays} compare.min_votes asks for {votes.min_votes} votes that prefer one side, and "
            f"so far there are {votes.preference.decided} ({said})."
        )
    if votes.preference.prefers_champion:
        return False, f"{stays} people prefer the champion: {said}."
    return True, f"{why} People do not prefer the champion: {said}."


def _spell(interval: Interval) -> str:
    return f"{interval.mean:+.4f} (95 % interval {interval.low:+.4f} to {interval.high:+.4f})"


def _check_same_harness(challenger: Contender, champion: Contender) -> None:
    ours, theirs = challenger.harness.to_json(), champion.harness.to_json()
    differing = sorted(name for name in ours if ours[name] != theirs[name])
    if differing:
        raise StageError(
            "challenger and champion were not scored with the same harness",
            got=f"different {', '.join(differing)}",
            hint="score both again with the same suite, seeds, scorers and photos",
        )


def _by_pair(row: CheckpointScore) -> dict[tuple[str, int], ImageScore]:
    pairs = {(image.prompt, image.seed): image for image in row.images}
    if len(pairs) != len(row.images):
        raise StageError(f"row {row.name!r} holds two images of the same prompt and seed")
    return pairs
