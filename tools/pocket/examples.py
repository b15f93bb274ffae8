"""The six example subjects: individuals outside the training set, drawn as 256 px photos."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.files import atomic_file, write_text
from tools.pocket.drawing import render
from tools.pocket.world import PLACES, Individual, Scene, draw_pose, generator

SIDE = 256
SEED = 7
#: Individual and places of the photos by subject; the class noun is the individual's thing. The
#: angles of the patterns occur in no training individual (see `world.draw_individual`).
SUBJECTS: dict[str, tuple[Individual, tuple[str, ...]]] = {
    "mug-stripes": (
        Individual(thing="mug", colour="blue", pattern="stripes", second="orange", count=3,
                   angle=18.0, face=True),
        ("room", "beach", "grass", "city", "snow"),
    ),
    "robot-sunny": (
        Individual(thing="robot", colour="yellow", pattern="two_tone", second="purple",
                   angle=20.0, face=True, aspect=1.06),
        ("city", "room", "grass", "night"),
    ),
    "cat-patches": (
        Individual(thing="cat", colour="white", pattern="dots", second="black", count=2,
                   angle=65.0, aspect=0.96),
        ("room", "grass", "snow", "beach", "night"),
    ),
    "backpack-red": (
        Individual(thing="backpack", colour="red", pattern="stripes", second="white", count=2,
                   angle=112.0, face=True),
        ("city", "grass", "beach", "room"),
    ),
    "duck-spotty": (
        Individual(thing="duck", colour="green", pattern="dots", second="yellow", count=3,
                   angle=24.0, aspect=1.04),
        ("beach", "grass", "room", "city", "night", "snow"),
    ),
    "car-racer": (
        Individual(thing="car", colour="purple", pattern="two_tone", second="orange",
                   angle=68.0),
        ("city", "beach", "snow"),
    ),
}  # fmt: skip


def example_scenes(name: str) -> list[Scene]:
    """The scenes of one subject's photos, in order."""
    individual, places = SUBJECTS[name]
    scenes = []
    for number, place in enumerate(places):
        if place not in PLACES:
            raise KeyError(f"{name}: unknown place {place!r}; allowed: {', '.join(PLACES)}")
        rng = generator(SEED, stream=f"example-{name}", index=number)
        scenes.append(
            Scene(
                individual=individual,
                place=place,
                pose=draw_pose(rng),
                backdrop=int(rng.integers(2**31)),
            )
        )
    return scenes


def write_examples(folder: Path) -> None:
    """Write `folder/<subject>/NN.png` for every subject, and a README."""
    for name in SUBJECTS:
        for number, scene in enumerate(example_scenes(name), start=1):
            image, _ = render(scene, size=SIDE)
            with atomic_file(folder / name / f"{number:02d}.png") as aside:
                image.save(aside, format="PNG", optimize=True)
    rows = [
        f"| `{name}` | {individual.thing} | {len(places)} | {', '.join(places)} |"
        for name, (individual, places) in SUBJECTS.items()
    ]
    write_text(
        folder / "README.md",
        "# Example subjects\n\n"
        "Six individuals of the pocket world, with 3-6 photos each, drawn by\n"
        "`python -m tools.pocket examples`. The training set of the pocket models contains\n"
        "none of them. The photos show no real thing or person.\n\n"
        "| subject | class noun | photos | places |\n|---|---|---|---|\n" + "\n".join(rows) + "\n",
    )
