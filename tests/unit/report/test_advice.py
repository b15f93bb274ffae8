"""The advice on a checkpoint, for scores worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from dreambooth_core.records import Interval, ScoreRow
from dreambooth_core.report.advice import Evidence, advise


def interval(mean: float, reach: float = 0.01) -> Interval:
    return Interval(mean=mean, low=mean - reach, high=mean + reach)


def row(name: str, dino: float | None, *, clip_t: float = 0.30, pres: float = 0.40) -> ScoreRow:
    return ScoreRow(
        name=name,
        step=0,
        n=32,
        clip_t=interval(clip_t),
        clip_i=None,
        dino=None if dino is None else interval(dino),
        pres=interval(pres),
        div=None,
    )


BASE, PHOTOS = row("step 0", 0.20), row("real", 0.90)


def evidence(dino: float, **scores: float) -> Evidence:
    """Of 0.70 of DINO between base model and photos; CLIP-T may fall to 0.29, PRES rise to 0.50."""
    return Evidence(
        row=row("checkpoint-1", dino, **scores),
        base=BASE,
        real=PHOTOS,
        limits={"clip_t": 0.29, "pres": 0.50},
        text_range=0.10,
        is_qualified=True,
        class_noun="mug",
    )


@pytest.mark.parametrize(
    ("found", "headline"),
    [
        (evidence(0.85), "Use it"),
        (evidence(0.76), "Use it"),  # exactly 80 % of the way
        (evidence(0.75), "Use with care: the pictures are only partly like the subject"),
        (evidence(0.54), "Do not use: nothing here looks like the photos"),
        (evidence(0.205), "Do not use: nothing here looks like the photos"),
        (
            evidence(0.85, clip_t=0.27),
            "Use with care: it follows the prompts less well than the base model",
        ),
        (evidence(0.85, clip_t=0.23), "Do not use: the pictures ignore the prompts"),
        (evidence(0.85, pres=0.52), "Use with care: it draws the subject for any mug"),
        (
            evidence(0.75, pres=0.52),
            "Use with care: the pictures are only partly like the subject and it draws the subject "
            "for any mug",
        ),
        (evidence(0.54, pres=0.52), "Do not use: nothing here looks like the photos"),
    ],
)
def test_headline_names_the_worst_of_subject_prompt_and_class(
    found: Evidence, headline: str
) -> None:
    assert advise(found).headline == headline


@pytest.mark.parametrize("scores", [{"clip_t": 0.285}, {"pres": 0.505}])
def test_score_beyond_a_limit_within_the_noise_is_no_fault(scores: dict[str, float]) -> None:
    advice = advise(evidence(0.85, **scores))
    assert advice.headline == "Use it"
    assert any("The limit lies within the noise." in check.numbers for check in advice.checks)


def test_checks_hold_the_numbers_that_decided() -> None:
    subject, prompt, class_ = advise(evidence(0.85)).checks
    assert subject.numbers == (
        "93 % of the way from the base model to the photos: DINO 0.850 (0.840 to 0.860); base "
        "model 0.200, photos 0.900."
    )
    assert prompt.numbers.endswith("base model 0.300, lowest allowed 0.290.")
    assert class_.numbers.endswith("base model 0.400, highest allowed 0.500.")


@pytest.mark.parametrize("real", [None, row("real", None), row("real", 0.1)])
def test_photos_without_a_ceiling_ask_for_care(real: ScoreRow | None) -> None:
    advice = advise(dataclasses.replace(evidence(0.85), real=real))
    assert advice.headline == (
        "Use with care: how near it came to the subject cannot be measured with these photos"
    )


def test_fallback_asks_for_care() -> None:
    advice = advise(dataclasses.replace(evidence(0.85), is_qualified=False))
    assert advice.headline == ("Use with care: no checkpoint kept to the limits of the selection")


def test_run_without_a_selection_has_nothing_to_use() -> None:
    assert advise(None).headline == "Do not use: there is no checkpoint"
