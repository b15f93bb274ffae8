from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tools.pocket import world
from tools.pocket.drawing import render
from tools.pocket.scenes import draw_scenes
from tools.pocket.settings import POCKET
from tools.pocket.things import FACE_ANCHORS

HELD_OUT = world.held_out_triples(POCKET.seed, one_in=POCKET.held_out_one_in)


def _pixels(scene: world.Scene, *, size: int = 64) -> np.ndarray:
    return np.asarray(render(scene, size=size)[0], dtype=np.float32)


def test_one_triple_in_ten_is_held_out_evenly() -> None:
    assert len(HELD_OUT) == len(world.THINGS) * len(world.COLOURS) * len(world.PLACES) // 10
    for column, names in enumerate((world.THINGS, world.COLOURS, world.PLACES)):
        counts = [sum(triple[column] == name for triple in HELD_OUT) for name in names]
        assert max(counts) <= 2 * len(HELD_OUT) / len(names)


def test_held_out_triples_occur_only_in_the_held_out_stream() -> None:
    drawn = [
        world.draw_scene(POCKET.seed, stream="train", index=i, exclude=HELD_OUT) for i in range(500)
    ]
    assert not {scene.triple for scene in drawn} & HELD_OUT
    held_out = draw_scenes(POCKET, stream="held-out-test", count=12)
    names = (world.THINGS, list(world.COLOURS), list(world.PLACES))
    for row in held_out.labels.tolist():
        assert tuple(n[i] for n, i in zip(names, row[:3], strict=True)) in HELD_OUT


def test_scene_depends_on_its_index_alone() -> None:
    first, again, other = (_pixels(world.draw_scene(3, stream="train", index=i)) for i in (5, 5, 6))
    assert np.array_equal(first, again)
    assert np.abs(first - other).mean() > 5


def test_scene_at_256_px_matches_the_scene_at_64_px() -> None:
    scene = world.draw_scene(3, stream="train", index=11)
    large = render(scene, size=256)[0].resize((64, 64), Image.Resampling.BOX)
    difference = np.abs(np.asarray(large, dtype=np.float32) - _pixels(scene))
    assert difference.mean() < 2.0


@pytest.mark.parametrize("thing", world.THINGS)
def test_thing_fills_a_tenth_to_half_of_the_image_in_its_colour(thing: str) -> None:
    who = world.Individual(thing=thing, colour="red")
    scene = world.Scene(individual=who, place="beach", pose=world.Pose(), backdrop=1)
    picture, mask = (np.asarray(part) for part in render(scene, size=64))
    inside = mask > 128
    assert 0.10 < inside.mean() < 0.50
    red = inside & (picture[..., 0] > 150) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    assert red.sum() > 0.3 * inside.sum()


def test_every_thing_has_a_face_anchor() -> None:
    assert set(FACE_ANCHORS) == set(world.THINGS)


@pytest.mark.parametrize("pattern", [p for p in world.PATTERNS if p != "plain"])
def test_patterns_change_pixels_of_the_thing_only(pattern: str) -> None:
    plain = world.Individual(thing="backpack", colour="blue")
    worn = world.Individual(thing="backpack", colour="blue", pattern=pattern, second="orange")
    scenes = [
        world.Scene(individual=who, place="snow", pose=world.Pose(), backdrop=4)
        for who in (plain, worn)
    ]
    changed = np.abs(_pixels(scenes[0]) - _pixels(scenes[1])).max(axis=2) > 30
    inside = np.asarray(render(scenes[0], size=64)[1]) > 0
    assert changed.sum() > 60
    assert not (changed & ~inside).any()


def test_twins_share_thing_and_colour_but_not_traits() -> None:
    for index in range(200):
        rng = world.generator(1, stream="who", index=index)
        first = world.draw_individual(rng)
        twin = world.draw_twin(rng, first)
        assert (first.thing, first.colour) == (twin.thing, twin.colour)
        assert world.traits(first) != world.traits(twin)


def test_views_of_one_individual_differ_only_in_place_and_pose() -> None:
    scenes = draw_scenes(POCKET, stream="pairs", count=2 * POCKET.views_per_individual)
    views = scenes.labels.reshape(2, POCKET.views_per_individual, -1)
    assert (views[:, :, [0, 1, 3, 4, 5]] == views[:, :1, [0, 1, 3, 4, 5]]).all()
    assert (views[0, 0, :2] == views[1, 0, :2]).all()
    assert views[0, 0, 5] != views[1, 0, 5]
