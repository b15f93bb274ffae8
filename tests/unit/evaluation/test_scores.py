"""Every score on tiny feature matrices, with values worked out by hand.

Features are unit vectors in a plane, so a cosine is that of the angle between two of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from dreambooth_core.evaluation.scores import (
    Bootstrap,
    Evaluator,
    References,
    RowFeatures,
    ScoredModel,
    clip_t_of,
    score_features,
    score_real,
)
from dreambooth_core.evaluation.store import ScoreStore
from dreambooth_core.evaluation.suites import EvaluationPlan
from dreambooth_core.numerics.similarity import Floats
from dreambooth_core.records import ScorerIdentity

MODEL = ScoredModel(name="checkpoint-100", step=100, sha256="f" * 64)


class _Named:
    """A scorer of which only the identity is asked for."""

    def __init__(self, name: str) -> None:
        self.identity = ScorerIdentity(name=name, backbone=name, sha256="0" * 64)


def at(*degrees: float) -> Floats:
    """Unit vectors at these angles."""
    radians = np.radians(np.array(degrees))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def cos(degrees: float) -> float:
    return float(np.cos(np.radians(degrees)))


def evaluator(*, clip_photos: Floats, dino_photos: Floats) -> Evaluator:
    """Two prompts with two images each, and two images of the class prompt."""
    plan = EvaluationPlan(
        suite="hand",
        prompts=("a sks mug on the beach", "a sks mug at night"),
        scored_texts=("a mug on the beach", "a mug at night"),
        images_per_prompt=2,
        seeds=(11, 12, 13, 14),
        class_prompt="a photo of mug",
        class_seeds=(21, 22),
        sampler="DDIMScheduler",
        steps=2,
        guidance=1.0,
        resolution=64,
        batch_size=4,
    )
    return Evaluator(
        plan=plan,
        clip=cast("Any", _Named("clip")),
        dino=cast("Any", _Named("dino")),
        references=References(
            clip_MD=clip_photos,
            dino_MD=dino_photos,
            patches_MLD=np.stack([at(0, 0), at(0, 90)]),
            sha256="1" * 64,
        ),
        store=ScoreStore(Path("nowhere")),
        bootstrap=Bootstrap(samples=200, seed=3),
    )


BENCH = evaluator(clip_photos=at(0, 60), dino_photos=at(0, 90))
FEATURES = RowFeatures(
    clip_ND=at(0, 80, 10, 100),
    dino_ND=at(0, 90, 60, 180),
    patches_NLD=np.stack([at(0, 0), at(0, 60), at(0, 90), at(90, 90)]),
    class_dino_KD=at(45, 90),
    text_PD=at(0, 90),
)


def row():
    return score_features(BENCH, model=MODEL, features=FEATURES)


def test_clip_t_is_the_cosine_of_image_and_prompt() -> None:
    """Images at 0 and 10 degrees against text 0, at 80 and 100 against text 90, round by round."""
    expected = [1.0, cos(10), cos(10), cos(10)]
    assert [image.clip_t for image in row().images] == pytest.approx(expected)
    assert row().clip_t is not None
    assert row().clip_t.mean == pytest.approx(np.mean(expected))  # type: ignore[union-attr]


def test_text_range_is_matched_minus_shuffled_prompts() -> None:
    """Shuffled: 0 and 10 against 90, 80 and 100 against 0, so cos 90, cos 80, cos 80, cos 100."""
    matched = (1.0 + 3 * cos(10)) / 4
    shuffled = (0.0 + cos(80) + cos(80) + cos(100)) / 4
    assert row().text_range == pytest.approx(matched - shuffled)


def test_text_range_averages_over_all_other_prompts() -> None:
    """One image, three prompts: 0.9 - (0.3 + 0.5) / 2 = 0.5."""
    matched, text_range = clip_t_of(np.array([[0.3, 0.9, 0.5]]), [1])
    assert matched == pytest.approx([0.9])
    assert text_range == pytest.approx(0.5)


def test_clip_i_averages_over_all_pairs_of_image_and_photo() -> None:
    """Photos at 0 and 60 degrees."""
    expected = [
        (1.0 + cos(60)) / 2,
        (cos(80) + cos(20)) / 2,
        (cos(10) + cos(50)) / 2,
        (cos(100) + cos(40)) / 2,
    ]
    assert [image.clip_i for image in row().images] == pytest.approx(expected)
    assert row().clip_i.mean == pytest.approx(np.mean(expected))  # type: ignore[union-attr]


def test_dino_is_the_same_with_dino_features() -> None:
    """Photos at 0 and 90 degrees, images at 0, 90, 60 and 180."""
    expected = [0.5, 0.5, (cos(60) + cos(30)) / 2, (-1.0 + 0.0) / 2]
    assert [image.dino for image in row().images] == pytest.approx(expected)
    assert row().dino.mean == pytest.approx(np.mean(expected))  # type: ignore[union-attr]


def test_pres_is_the_class_prompts_images_against_the_photos() -> None:
    """Images at 45 and 90, photos at 0 and 90: (cos 45 + cos 45) / 2 and (0 + 1) / 2."""
    assert row().pres.mean == pytest.approx((cos(45) + 0.5) / 2)  # type: ignore[union-attr]


def test_row_keeps_the_score_of_every_class_image_and_its_model() -> None:
    assert row().class_dino == pytest.approx([cos(45), 0.5])
    kept = (row().name, row().step, row().checkpoint_sha256)
    assert kept == (MODEL.name, MODEL.step, MODEL.checkpoint_sha256)


def test_div_compares_patches_at_the_same_place_of_one_prompts_images() -> None:
    """Images 0 and 2: 1 - (cos 0 + cos 90) / 2 = 0.5. Images 1 and 3: 1 - (cos 90 + cos 30) / 2.
    Never across prompts."""
    expected = (0.5 + 1 - cos(30) / 2) / 2
    assert row().div.mean == pytest.approx(expected)  # type: ignore[union-attr]


def test_every_image_names_its_nearest_photo() -> None:
    """Photos have patches at (0, 0) and (0, 90) degrees; image 1 has them at 0 and 60."""
    images = row().images
    assert [image.nearest for image in images] == [0, 1, 1, 1]
    assert [image.copied for image in images] == pytest.approx([1, (1 + cos(30)) / 2, 1, 0.5])


def test_intervals_enclose_their_means_and_n_counts_the_suites_images() -> None:
    scored = row()
    assert scored.n == 4
    for interval in (scored.clip_t, scored.clip_i, scored.dino, scored.pres, scored.div):
        assert interval is not None
        assert interval.low <= interval.mean <= interval.high


def test_real_compares_photos_with_each_other_and_never_with_themselves() -> None:
    """Photos at 0, 60 and 90 degrees: (cos 60 + cos 90 + cos 30) / 3. With itself: 1."""
    real = score_real(evaluator(clip_photos=at(0, 60, 90), dino_photos=at(0, 0, 90)))
    assert real.clip_i.mean == pytest.approx((cos(60) + cos(90) + cos(30)) / 3)  # type: ignore[union-attr]
    assert real.dino.mean == pytest.approx(1 / 3)  # type: ignore[union-attr]
    assert (real.name, real.step, real.n) == ("real", None, 3)
    assert (real.clip_t, real.pres, real.div) == (None, None, None)


def test_a_single_photo_has_no_score_against_itself() -> None:
    real = score_real(evaluator(clip_photos=at(0), dino_photos=at(0)))
    assert (real.n, real.clip_i, real.dino) == (1, None, None)
