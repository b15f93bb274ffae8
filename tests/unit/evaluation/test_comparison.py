"""Challenger against champion: noise, a clear gain, broken prompts, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dreambooth_core.errors import StageError
from dreambooth_core.evaluation.comparison import Contender, Noise, compare, paired_difference
from dreambooth_core.records import Harness, ImageScore
from tests.unit.evaluation.made_up import HARNESS, SELECT, checkpoint_score

NOISE = Noise(samples=500, seed=1234, text_range=0.1)
Shift = Callable[[int], float]


def contender(
    name: str,
    *,
    dino: Shift = lambda i: 0.0,
    clip_t: Shift = lambda i: 0.0,
    qualified: bool = True,
    harness: Harness = HARNESS,
    count: int = 32,
) -> Contender:
    """Image i scores as everyone's image i does, plus the shifts."""
    level = np.random.default_rng(0).normal(0.6, 0.1, count)
    images = [
        ImageScore(
            prompt=f"prompt {i // 4}",
            seed=1000 + i,
            clip_t=0.3 + clip_t(i),
            clip_i=0.8,
            dino=float(level[i]) + dino(i),
        )
        for i in range(count)
    ]
    return Contender(name=name, qualified=qualified, row=checkpoint_score(images), harness=harness)


def wobble(amplitude: float) -> Shift:
    noise = np.random.default_rng(5).normal(0.0, amplitude, 32)
    noise -= noise.mean()
    return lambda i: float(noise[i])


def test_a_clear_gain_is_promoted_with_its_numbers() -> None:
    """Images differ by 0.1 among themselves, yet a steady gain of 0.03 is seen: they are paired."""
    verdict = compare(
        contender("version 2", dino=lambda i: 0.03 + wobble(0.02)(i)),
        contender("version 1"),
        settings=SELECT,
        noise=NOISE,
    )
    assert verdict.promote
    assert verdict.why.startswith("version 2 replaces version 1: over 32 pairs")
    assert "DINO differs by +0.0300 (95 % interval +0.02" in verdict.why
    assert verdict.difference["dino"].mean == pytest.approx(0.03)
    assert verdict.difference["clip_t"].mean == pytest.approx(0.0, abs=1e-12)


def test_a_difference_within_the_noise_is_refused() -> None:
    verdict = compare(
        contender("version 2", dino=lambda i: 0.005 + wobble(0.06)(i)),
        contender("version 1"),
        settings=SELECT,
        noise=NOISE,
    )
    assert not verdict.promote
    assert verdict.difference["dino"].low < 0 < verdict.difference["dino"].mean
    assert "within the noise" in verdict.why


def test_better_dino_with_broken_clip_t_is_refused() -> None:
    verdict = compare(
        contender("version 2", dino=lambda i: 0.1, clip_t=lambda i: -0.05 + wobble(0.02)(i)),
        contender("version 1"),
        settings=SELECT,
        noise=NOISE,
    )
    assert not verdict.promote
    assert "worse by more than the tolerated 0.0100, beyond the noise" in verdict.why


def test_clip_t_loss_within_the_tolerance_allows_promotion() -> None:
    """Tolerated are 0.1 x the text range of 0.1 = 0.01; lost is 0.008."""
    verdict = compare(
        contender("version 2", dino=lambda i: 0.1, clip_t=lambda i: -0.008),
        contender("version 1"),
        settings=SELECT,
        noise=NOISE,
    )
    assert verdict.promote


@pytest.mark.parametrize("loss", [0.004, 0.014])
def test_clip_t_loss_that_may_be_noise_allows_promotion(loss: float) -> None:
    """Tolerated are 0.01. The lower bound is beyond that, and for 0.014 the mean is, too."""
    verdict = compare(
        contender("version 2", dino=lambda i: 0.1, clip_t=lambda i: wobble(0.05)(i) - loss),
        contender("version 1"),
        settings=SELECT,
        noise=NOISE,
    )
    difference = verdict.difference["clip_t"]
    assert difference.low < -0.01 < difference.high
    assert difference.mean == pytest.approx(-loss)
    assert verdict.promote


def test_equal_clip_t_is_enough_where_no_loss_is_tolerated() -> None:
    none = Noise(samples=500, seed=1234, text_range=0.0)
    better = contender("version 2", dino=lambda i: 0.1)
    assert compare(better, contender("version 1"), settings=SELECT, noise=none).promote


def test_a_worse_challenger_is_refused_as_worse() -> None:
    verdict = compare(
        contender("version 2", dino=lambda i: -0.1),
        contender("version 1"),
        settings=SELECT,
        noise=NOISE,
    )
    assert not verdict.promote
    assert "less like the subject" in verdict.why


def test_a_fallback_is_never_promoted_however_good_its_dino() -> None:
    verdict = compare(
        contender("version 2", dino=lambda i: 0.3, qualified=False),
        contender("version 1"),
        settings=SELECT,
        noise=NOISE,
    )
    assert not verdict.promote
    assert "never promoted" in verdict.why


@pytest.mark.parametrize("qualified", [True, False])
def test_first_version_becomes_champion_only_if_qualified(qualified: bool) -> None:
    first = contender("version 1", qualified=qualified)
    verdict = compare(first, None, settings=SELECT, noise=NOISE)
    assert verdict.promote is qualified
    assert verdict.champion is None
    assert verdict.difference == {}


def test_the_same_version_is_already_the_champion() -> None:
    same = contender("version 3")
    verdict = compare(same, same, settings=SELECT, noise=NOISE)
    assert not verdict.promote
    assert verdict.why == "version 3 is already the champion."


STAYS = "version 2 stays a challenger to version 1: NUMBERS, "
SENTENCES = {
    "replaces": (
        contender("version 2", dino=lambda i: 0.1),
        "version 2 replaces version 1: NUMBERS, so it is more like the subject by more than the "
        "noise, and its CLIP-T is not worse than tolerated (0.0100).",
    ),
    "follows the prompts worse": (
        contender("version 2", dino=lambda i: 0.1, clip_t=lambda i: -0.05),
        STAYS + "so it is more like the subject but follows the prompts worse by more than the "
        "tolerated 0.0100, beyond the noise.",
    ),
    "within the noise": (
        contender("version 2"), STAYS + "so the difference in DINO is within the noise.",
    ),
    "worse": (
        contender("version 2", dino=lambda i: -0.1),
        STAYS + "so it is less like the subject, by more than the noise.",
    ),
    "no checkpoint qualified": (
        contender("version 2", qualified=False),
        STAYS + "but no checkpoint of its run qualified, so it is never promoted.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("challenger", "expected"), SENTENCES.values(), ids=SENTENCES.keys())
def test_verdict_is_a_sentence_with_the_numbers_that_decided(
    challenger: Contender, expected: str
) -> None:
    verdict = compare(challenger, contender("version 1"), settings=SELECT, noise=NOISE)
    said = {
        score: f"{it.mean:+.4f} (95 % interval {it.low:+.4f} to {it.high:+.4f})"
        for score, it in verdict.difference.items()
    }
    numbers = (
        f"over 32 pairs of the same prompt and seed, DINO differs by {said['dino']} and CLIP-T by "
        f"{said['clip_t']}"
    )
    assert verdict.why == expected.replace("NUMBERS", numbers)
    assert (verdict.challenger, verdict.champion) == ("version 2", "version 1")


def test_first_version_is_told_why_it_is_champion_or_not() -> None:
    first = compare(contender("version 1"), None, settings=SELECT, noise=NOISE)
    assert first.why == (
        "version 1 becomes the first champion: it qualified in its run, and there is none to "
        "compare it with."
    )
    unqualified = contender("version 1", qualified=False)
    assert compare(unqualified, None, settings=SELECT, noise=NOISE).why == (
        "version 1 stays a challenger: no checkpoint of its run qualified, so it is never "
        "promoted, although there is no champion yet."
    )


def test_paired_difference_equals_the_mean_by_hand() -> None:
    """Three pairs that differ by 0.1, 0.2 and 0.6: 0.3."""
    shifts = [0.1, 0.2, 0.6]
    difference = paired_difference(
        contender("b", dino=lambda i: shifts[i], count=3), contender("a", count=3), noise=NOISE
    )
    assert difference["dino"].mean == pytest.approx(0.3)
    assert 0.1 <= difference["dino"].low < 0.3 < difference["dino"].high <= 0.6


def test_pairs_do_not_depend_on_the_order_of_the_images() -> None:
    challenger, champion = contender("b", dino=wobble(0.1)), contender("a")
    turned = champion.row.model_copy(update={"images": champion.row.images[::-1]})
    other = Contender(name="a", qualified=True, row=turned, harness=HARNESS)
    assert paired_difference(challenger, champion, noise=NOISE) == paired_difference(
        challenger, other, noise=NOISE
    )


def test_differing_harnesses_are_refused_and_what_differs_is_named() -> None:
    other = HARNESS.model_copy(update={"steps": 50, "guidance": 7.5})
    with pytest.raises(StageError) as error:
        compare(contender("b", harness=other), contender("a"), settings=SELECT, noise=NOISE)
    assert str(error.value) == (
        "challenger and champion were not scored with the same harness; found: different "
        "guidance, steps; what to do: score both again with the same suite, seeds, scorers and "
        "photos"
    )


def test_unpaired_images_are_refused_with_their_number() -> None:
    with pytest.raises(StageError) as error:
        compare(contender("b"), contender("a", count=28), settings=SELECT, noise=NOISE)
    assert str(error.value) == (
        "the images of challenger and champion do not pair by prompt and seed; found: 32 and 28 "
        "images, 28 pairs; what to do: score both again with the same settings"
    )


def test_two_images_of_one_prompt_and_seed_are_refused() -> None:
    images = contender("a", count=2).row.images
    twice = Contender(
        name="a", qualified=True, row=checkpoint_score([*images, images[0]]), harness=HARNESS
    )
    expected = "row 'checkpoint-200' holds two images of the same prompt and seed"
    with pytest.raises(StageError, match=expected):
        paired_difference(contender("b", count=2), twice, noise=NOISE)
