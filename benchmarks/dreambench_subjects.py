"""Draw subjects of the pocket world into a folder laid out like the paper's data set.

    python -m benchmarks.dreambench_subjects FOLDER [--subjects 12]

Each subject has four photos in four places. No other benchmark and no setting has seen them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dreambooth_core.data.subject_folders import write_classes
from tools.pocket.drawing import render
from tools.pocket.world import PLACES, Scene, draw_individual, draw_pose, generator

SEED, NUM_PHOTOS, SIDE = 31_337, 4, 256
NOUNS = ("mug", "car", "cat", "robot", "backpack", "duck")


def draw(folder: Path, index: int) -> str:
    """Draw the photos of subject `index`; returns its class noun."""
    rng = generator(SEED, stream="dreambench", index=index)
    individual = draw_individual(rng, thing=NOUNS[index % len(NOUNS)])
    folder.mkdir(parents=True, exist_ok=True)
    for number, place in enumerate(list(rng.permutation(list(PLACES)))[:NUM_PHOTOS]):
        scene = Scene(
            individual=individual,
            place=str(place),
            pose=draw_pose(rng),
            backdrop=int(rng.integers(2**31)),
        )
        image, _ = render(scene, size=SIDE)
        image.save(folder / f"{number:02d}.png")
    return individual.thing


def draw_all(root: Path, num_subjects: int) -> None:
    """Draw the subjects and write their classes."""
    classes: dict[str, str] = {}
    for index in range(num_subjects):
        name = f"{NOUNS[index % len(NOUNS)]}{index // len(NOUNS) + 1}"
        classes[name] = draw(root / name, index)
    write_classes(root, classes)


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=12)
    arguments = parser.parse_args()
    draw_all(arguments.folder, arguments.subjects)


if __name__ == "__main__":
    main()
