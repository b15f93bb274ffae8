"""Rendered scenes as arrays, cached in the state folder and shared by all parts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreambooth_core.files import atomic_file
from tools.pocket import world
from tools.pocket.drawing import render
from tools.pocket.settings import PocketSettings

#: Increment when a change of the drawing code makes cached scenes stale.
WORLD_VERSION = 2
THING_NAMES: list[str] = list(world.THINGS)
COLOUR_NAMES: list[str] = list(world.COLOURS)
PLACE_NAMES: list[str] = list(world.PLACES)
PATTERN_NAMES: list[str] = list(world.PATTERNS)


@dataclass(frozen=True, slots=True)
class SceneSet:
    """`images` (N, H, W, 3) and `masks` (N, H, W) in uint8; `labels` (N, 6): thing, colour, place,
    pattern, face (0 or 1), number of the individual."""

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def _labels(scene: world.Scene, *, individual: int) -> tuple[int, ...]:
    subject = scene.individual
    return (
        THING_NAMES.index(subject.thing),
        COLOUR_NAMES.index(subject.colour),
        PLACE_NAMES.index(scene.place),
        PATTERN_NAMES.index(subject.pattern),
        int(subject.face),
        individual,
    )


def scene_at(settings: PocketSettings, *, stream: str, index: int) -> tuple[world.Scene, int]:
    """Scene `index` of a stream, and the number of its individual."""
    held_out = world.held_out_triples(settings.seed, one_in=settings.held_out_one_in)
    if stream.startswith("pairs"):
        number = index // settings.views_per_individual
        rng = world.generator(settings.seed, stream=f"{stream}-who", index=number // 2)
        first = world.draw_individual(rng)
        twin = world.draw_twin(rng, first)
        # Twins share thing and colour: hard negatives of each other.
        individual = twin if number % 2 else first
        return world.draw_scene(
            settings.seed, stream=stream, index=index, individual=individual, exclude=held_out
        ), number
    only = held_out if stream == "held-out-test" else None
    exclude = frozenset() if only else held_out
    return world.draw_scene(
        settings.seed, stream=stream, index=index, exclude=exclude, only=only
    ), index


def draw_scenes(settings: PocketSettings, *, stream: str, count: int) -> SceneSet:
    """Draw `count` scenes of a stream ("train", "test", "held-out-test", "pairs", ...)."""
    side = settings.image
    images = np.empty((count, side, side, 3), np.uint8)
    masks = np.empty((count, side, side), np.uint8)
    labels = np.empty((count, 6), np.int64)
    for index in range(count):
        scene, individual = scene_at(settings, stream=stream, index=index)
        image, mask = render(scene, size=side)
        images[index], masks[index] = np.asarray(image), np.asarray(mask)
        labels[index] = _labels(scene, individual=individual)
    return SceneSet(images, masks, labels)


def load_scenes(settings: PocketSettings, *, stream: str, count: int, state: Path) -> SceneSet:
    """The scenes from the cache in the state folder; draws and caches them if missing."""
    what = {"stream": stream, "count": count, "version": WORLD_VERSION, "seed": settings.seed,
            "image": settings.image, "one_in": settings.held_out_one_in,
            "views": settings.views_per_individual}  # fmt: skip
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    path = state / "scenes" / f"{stream}-{key}.npz"
    if not path.exists():
        scenes = draw_scenes(settings, stream=stream, count=count)
        with atomic_file(path) as aside, aside.open("wb") as file:
            np.savez(file, images=scenes.images, masks=scenes.masks, labels=scenes.labels)
        return scenes
    with np.load(path) as arrays:
        return SceneSet(arrays["images"], arrays["masks"], arrays["labels"])
