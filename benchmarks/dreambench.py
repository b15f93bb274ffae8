"""DreamBench on drawn subjects: the tables of the DreamBooth paper, made with the pocket models.

    python -m benchmarks.dreambench [--subjects 12] [--ablated 6] [--json] [--draw-only]

Draws subjects into WORKSPACE/subjects, a folder laid out like the paper's data set, and runs every
case of the benchmark with the pipeline's own stages. Each subject has four photos in four places;
no setting was tuned on them. Resumes where it was stopped. `--json` writes
`benchmarks/results/dreambench.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from benchmarks import common
from dreambooth_core import files
from dreambooth_core.data.subject_folders import write_classes
from dreambooth_core.evaluation import paper_tables
from dreambooth_core.pipeline import dreambench
from tools.pocket.drawing import render
from tools.pocket.world import PLACES, Scene, draw_individual, draw_pose, generator

SEED, NUM_SUBJECTS, NUM_PHOTOS, SIDE = 31_337, 12, 4, 256
NOUNS = ("mug", "car", "cat", "robot", "backpack", "duck")
RESULTS = common.ROOT / "benchmarks" / "results" / "dreambench.json"

logger = logging.getLogger("dreambooth")


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


def draw_all(root: Path) -> list[str]:
    """Draw the subjects and write their classes; returns the subjects' names."""
    classes: dict[str, str] = {}
    for index in range(NUM_SUBJECTS):
        name = f"{NOUNS[index % len(NOUNS)]}{index // len(NOUNS) + 1}"
        classes[name] = draw(root / name, index)
    write_classes(root, classes)
    return list(classes)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", type=Path, default=common.ROOT / ".state" / "dreambench")
    parser.add_argument("--subjects", type=int, default=NUM_SUBJECTS, help="only the first")
    parser.add_argument("--ablated", type=int, default=6, help="subjects with ablations")
    parser.add_argument("--draw-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    workspace = arguments.workspace.resolve()
    names = draw_all(workspace / "subjects")[: arguments.subjects]
    if arguments.draw_only:
        return
    plan, _ = dreambench.plan_for(
        common.ROOT,
        workspace / "subjects",
        scratch=workspace / "out" / "store" / "validate",
        names=names,
        num_ablated=arguments.ablated,
    )
    dreambench.store_plan(workspace / "out", plan)
    bench = dreambench.Bench(common.ROOT, workspace / "out", plan)
    for case in plan.cases():
        began = time.monotonic()
        dreambench.run_case(bench, *case)
        logger.info("%s %s: %.0f s", *case, time.monotonic() - began)
    results = dreambench.write_results(bench)
    print(paper_tables.markdown(results))
    if arguments.json:
        data = {"machine": common.machine(), "seed": SEED, **results.to_json()}
        files.write_json(RESULTS, json.loads(json.dumps(data)))


if __name__ == "__main__":
    main()
