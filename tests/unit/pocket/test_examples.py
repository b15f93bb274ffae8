from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.paths import ROOT
from tools.pocket.drawing import render
from tools.pocket.examples import SIDE, SUBJECTS, example_scenes
from tools.pocket.scenes import scene_at
from tools.pocket.settings import POCKET
from tools.pocket.world import COLOURS, PLACES, THINGS, traits

EXAMPLES = ROOT / "examples"


def test_six_subjects_have_distinct_things_and_three_to_six_photos() -> None:
    assert len(SUBJECTS) == 6
    assert len({individual.thing for individual, _ in SUBJECTS.values()}) == 6
    for individual, places in SUBJECTS.values():
        assert individual.thing in THINGS
        assert individual.colour in COLOURS
        assert 3 <= len(places) <= 6
        assert len(set(places)) == len(places)
        assert set(places) <= set(PLACES)


@pytest.mark.parametrize("name", SUBJECTS)
def test_shipped_photos_match_the_drawing_code(name: str) -> None:
    scenes = example_scenes(name)
    shipped = sorted((EXAMPLES / name).glob("*.png"))
    assert len(shipped) == len(scenes)
    for path, scene in zip(shipped, scenes, strict=True):
        with Image.open(io.BytesIO(path.read_bytes())) as photo:
            saved = np.asarray(photo.convert("RGB"), dtype=np.int16)
        drawn = np.asarray(render(scene, size=SIDE)[0], dtype=np.int16)
        assert np.abs(saved - drawn).max() <= 2


def test_photos_take_less_than_one_megabyte() -> None:
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*.png")) < 1_000_000


def test_no_training_individual_resembles_an_example_subject() -> None:
    subjects = [individual for individual, _ in SUBJECTS.values()]
    for index in range(3000):
        seen = scene_at(POCKET, stream="train", index=index)[0].individual
        for subject in subjects:
            if (seen.thing, seen.colour, traits(seen)) == (
                subject.thing,
                subject.colour,
                traits(subject),
            ):
                turned = abs((seen.angle - subject.angle + 22.5) % 45.0 - 22.5)
                assert turned > 5.0, f"{seen} could be taken for {subject}"
