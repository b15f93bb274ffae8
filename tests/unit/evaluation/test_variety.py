"""DIV and copies on drawn pictures: they see pose and background, to which DINO is blind."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.evaluation.extractors import load_dino
from dreambooth_core.numerics.similarity import Floats, cosines, pair_mean, patch_cosines
from tests.paths import ROOT
from tools.pocket.drawing import render
from tools.pocket.world import PLACES, Scene, draw_individual, draw_pose, generator

NUM_SETS, NUM_IMAGES = 24, 4
DINO = load_dino("assets/pocket-dino", root=ROOT, device=torch.device("cpu"))
Kind = Literal["repeated", "poses", "backdrops"]


def drawn(index: int, kind: Kind) -> list[Image.Image]:
    """One individual in one place: one scene repeated, or in other poses or before other backdrops.

    Every picture has noise, as no two samples of a model are equal.
    """
    rng = generator(17, stream=f"variety-{kind}", index=index)
    individual, place = draw_individual(rng), str(rng.choice(list(PLACES)))
    pose, backdrop = draw_pose(rng), int(rng.integers(2**31))
    pictures = []
    for _ in range(NUM_IMAGES):
        if kind == "poses":
            pose = draw_pose(rng)
        if kind == "backdrops":
            backdrop = int(rng.integers(2**31))
        scene = Scene(individual=individual, place=place, pose=pose, backdrop=backdrop)
        levels = np.asarray(render(scene, size=64)[0]) + rng.normal(0, 8, (64, 64, 3))
        pictures.append(Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)))
    return pictures


def variety(pictures: Sequence[Image.Image]) -> tuple[float, float]:
    """The mean distance between the pictures by patches (DIV), and by DINO's feature."""
    whole_ND, patches_NLD = DINO.images_and_patches(pictures)
    group_N = [0] * len(pictures)
    by_patches = pair_mean(1 - patch_cosines(patches_NLD, patches_NLD), group_N)
    return by_patches, pair_mean(1 - cosines(whole_ND, whole_ND), group_N)


@functools.cache
def varieties(kind: Kind) -> Floats:
    return np.array([variety(drawn(index, kind)) for index in range(NUM_SETS)])


def auc(lower: Floats, higher: Floats) -> float:
    """The probability that a value of `higher` exceeds one of `lower`."""
    return float((lower[:, None] < higher[None]).mean())


@pytest.mark.parametrize("kind", ["poses", "backdrops"])
def test_div_tells_varied_pictures_from_one_repeated(kind: Kind) -> None:
    assert auc(varieties("repeated")[:, 0], varieties(kind)[:, 0]) >= 0.95


def test_dinos_feature_hardly_sees_the_background() -> None:
    """The reason for patches: DINO's feature is trained to be the same before all backdrops."""
    assert auc(varieties("repeated")[:, 1], varieties("backdrops")[:, 1]) < 0.9


def test_copies_of_a_photo_are_told_from_new_pictures() -> None:
    """The photo is the first picture of a set. Another picture of it is a copy if the scene is the
    same, and new if the pose differs."""
    copied, new = ([copied_of(drawn(i, kind)) for i in range(NUM_SETS)] for kind in KINDS)
    assert auc(np.ravel(new), np.ravel(copied)) >= 0.95


KINDS: tuple[Kind, Kind] = ("repeated", "poses")


def copied_of(pictures: Sequence[Image.Image]) -> Floats:
    _, patches_NLD = DINO.images_and_patches(pictures)
    return patch_cosines(patches_NLD[1:], patches_NLD[:1])[:, 0]
