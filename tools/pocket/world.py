"""The pocket world: things, colours, places, individuals, poses.

A scene is a function of (seed, stream, index), so each can be drawn without the others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

THINGS = ("mug", "car", "cat", "robot", "backpack", "duck", "rocket", "umbrella")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (212, 38, 38),
    "yellow": (250, 205, 40),
    "green": (20, 130, 62),
    "blue": (38, 88, 214),
    "purple": (146, 58, 188),
    "white": (242, 242, 240),
}
#: Second colours of patterns; no caption mentions them.
TRAIT_COLOURS: dict[str, tuple[int, int, int]] = {
    **COLOURS,
    "black": (36, 34, 40),
    "orange": (244, 128, 28),
}
PLACES: dict[str, str] = {
    "beach": "on the beach",
    "snow": "in the snow",
    "grass": "on the grass",
    "night": "at night",
    "city": "in the city",
    "room": "in a room",
}
PATTERNS = ("plain", "stripes", "dots", "two_tone")
PATTERN_SHARES = (0.55, 0.17, 0.14, 0.14)


@dataclass(frozen=True, kw_only=True, slots=True)
class Individual:
    """One particular thing, with everything that is the same in all its images."""

    thing: str
    colour: str
    pattern: str = "plain"
    second: str = "black"
    #: Number of stripes, or of dots across; only for these patterns.
    count: int = 4
    #: Direction of the pattern in degrees.
    angle: float = 0.0
    face: bool = False
    #: Width relative to the usual width of the thing.
    aspect: float = 1.0
    tint: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """Position of the thing; lengths are fractions of the image's side, `turn` is in degrees."""

    x: float = 0.5
    y: float = 0.55
    scale: float = 0.34
    turn: float = 0.0
    flip: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """An individual in a place; `backdrop` seeds the details of the place."""

    individual: Individual
    place: str
    pose: Pose
    backdrop: int

    @property
    def triple(self) -> tuple[str, str, str]:
        """Thing, colour and place."""
        return self.individual.thing, self.individual.colour, self.place


def generator(seed: int, *, stream: str, index: int) -> np.random.Generator:
    """NumPy's generator, keyed by (seed, stream, index); the shipped examples depend on it."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def held_out_triples(seed: int, *, one_in: int) -> frozenset[tuple[str, str, str]]:
    """One in `one_in` (thing, colour, place) triples, spread evenly over all pairs."""
    triples = [(t, c, p) for t in THINGS for c in COLOURS for p in PLACES]
    order = generator(seed, stream="held-out", index=0).permutation(len(triples))
    chosen: list[tuple[str, str, str]] = []
    for position in order:
        thing, colour, place = triples[position]
        if all(sum((thing == a, colour == b, place == c)) < 2 for a, b, c in chosen):
            chosen.append((thing, colour, place))
    for position in order:
        if len(chosen) >= len(triples) // one_in:
            break
        if triples[position] not in chosen:
            chosen.append(triples[position])
    return frozenset(chosen[: len(triples) // one_in])


def draw_individual(
    rng: np.random.Generator, *, thing: str | None = None, colour: str | None = None
) -> Individual:
    """A random individual, optionally of a fixed thing and colour."""
    first = colour or str(rng.choice(list(COLOURS)))
    seconds = [name for name in TRAIT_COLOURS if name != first]
    return Individual(
        thing=thing or str(rng.choice(THINGS)),
        colour=first,
        pattern=str(rng.choice(PATTERNS, p=PATTERN_SHARES)),
        second=str(rng.choice(seconds)),
        count=int(rng.integers(2, 4)),
        angle=float(rng.choice([0.0, 45.0, 90.0, 135.0])) + float(rng.uniform(-8, 8)),
        face=bool(rng.random() < 0.25),
        aspect=float(rng.uniform(0.9, 1.1)),
        tint=tuple(int(v) for v in rng.integers(-12, 13, 3)),  # type: ignore[arg-type]
    )


def traits(individual: Individual) -> tuple[object, ...]:
    """The visible differences between individuals of the same thing and colour."""
    patterned = individual.pattern != "plain"
    return individual.pattern, individual.second if patterned else None, individual.face


def draw_twin(rng: np.random.Generator, first: Individual) -> Individual:
    """Another individual of the same thing and colour, with different traits."""
    while True:
        twin = draw_individual(rng, thing=first.thing, colour=first.colour)
        if traits(twin) != traits(first):
            return twin


def draw_pose(rng: np.random.Generator) -> Pose:
    """A random pose: the thing lies inside the image and fills about two thirds of it."""
    scale = float(rng.uniform(0.33, 0.39))
    return Pose(
        x=float(rng.uniform(0.5 - 0.07, 0.5 + 0.07)),
        y=float(rng.uniform(0.91, 0.94)) - scale,
        scale=scale,
        turn=float(rng.uniform(-9.0, 9.0)),
        flip=bool(rng.random() < 0.5),
    )


def draw_scene(
    seed: int,
    *,
    stream: str,
    index: int,
    individual: Individual | None = None,
    exclude: frozenset[tuple[str, str, str]] = frozenset(),
    only: frozenset[tuple[str, str, str]] | None = None,
) -> Scene:
    """Scene `index` of `stream`, with a triple outside `exclude` and, if given, inside `only`."""
    rng = generator(seed, stream=stream, index=index)
    while True:
        subject = individual or draw_individual(rng)
        scene = Scene(
            individual=subject,
            place=str(rng.choice(list(PLACES))),
            pose=draw_pose(rng),
            backdrop=int(rng.integers(2**31)),
        )
        if scene.triple not in exclude and (only is None or scene.triple in only):
            return scene
