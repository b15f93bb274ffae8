"""Subject and prompt, on photos taken in one place: which recipe keeps both?

    python -m benchmarks.one_place [--recipes shipped,auto,files] [--subjects 0-7] [--json]
    python -m benchmarks.one_place --photos several-places  # what a recipe costs on easy photos
    python -m benchmarks.one_place --photos trials          # subjects to find recipes with

Draws subjects with three photos in one place (`several-places`: four in four), trains each recipe
on them with the pipeline's own stages, and measures every scored checkpoint:

    DINO way closed   (DINO - DINO(step 0)) / (DINO(real) - DINO(step 0))
    CLIP-T lost       as a part of the text range
    place right       share of images that show the place of their prompt, by the pocket classifier

A recipe is the shipped settings with a few other values. The subjects of the report differ from
those that recipes are found with (`trials`). Captions name the place, as `dreambooth subject
caption` writes them; recipes without captions do not read them. Runs in a separate workspace and
resumes there. `--json` adds the runs to `benchmarks/results/one-place.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np

from benchmarks import drawn_runs
from benchmarks.common import ROOT, machine
from benchmarks.pocket_subjects import make_place_accuracy
from dreambooth_core import config, files
from dreambooth_core.data.captions import write_caption
from dreambooth_core.pipeline import captioning
from dreambooth_core.records import REAL, STEP_0, CheckpointScore, Evaluation, Selection
from dreambooth_core.workspace import Workspace
from tools.pocket.drawing import render
from tools.pocket.world import PLACES, THINGS, Scene, draw_individual, draw_pose, generator

RECIPES: Mapping[str, Any] = {
    "shipped": {},
    "auto": {"data": {"masks": "auto"}},
    "files": {"data": {"masks": "files"}},
    "captions": {"data": {"captions": True}},
    "half-captions": {"data": {"captions": True, "caption_rate": 0.5}},
    "rate-1e-4": {"train": {"learning_rate": 1e-4}},
    "rate-5e-5": {"train": {"learning_rate": 5e-5, "max_train_steps": 1200}},
    "prior-0.5": {"prior": {"prior_loss_weight": 0.5}},
    "prior-2": {"prior": {"prior_loss_weight": 2.0}},
    "text-encoder": {"train": {"train_text_encoder": True, "text_encoder_lr": 5e-5}},
    "every-30-steps": {
        "train": {"checkpointing_steps": 30},
        "select": {"early_stopping_patience": 4},
    },
}
SEED = 8_202
ONE, SEVERAL, TRIALS = "one place", "several places", "one place, trials"
PHOTOS = {"one-place": ONE, "several-places": SEVERAL, "trials": TRIALS}
STAGES = ("validate", "class-images", "cache", "train", "evaluate", "select")
RESULTS = ROOT / "benchmarks" / "results" / "one-place.json"


@dataclass(frozen=True)
class Row:
    """A checkpoint's measures."""

    step: int
    n: int
    dino_closed: float
    clip_t_lost: float
    place_right: float


@dataclass(frozen=True)
class Run:
    """One training of one subject: all scored checkpoints, the chosen and the last one."""

    subject: str
    recipe: str
    photos: str
    qualified: bool
    chosen: Row
    last: Row
    rows: tuple[Row, ...]


def draw(folder: Path, index: int, photos: str) -> str:
    """Draw a subject's photos and masks; returns its class noun."""
    rng = generator(SEED, stream=_slug(photos, "-"), index=index)
    individual = draw_individual(rng, thing=THINGS[index % len(THINGS)])
    known = list(PLACES)
    places = rng.permutation(known)[:4] if photos == SEVERAL else [rng.choice(known)] * 3
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for number, place in enumerate(map(str, places)):
        backdrop = int(rng.integers(2**31))
        scene = Scene(individual=individual, place=place, pose=draw_pose(rng), backdrop=backdrop)
        image, mask = render(scene, size=256)
        image.save(folder / f"{number:02d}.png")
        mask.save(folder / "masks" / f"{number:02d}.png")
    return individual.thing


def key_of(index: int, recipe: str, photos: str) -> str:
    """The name of a subject with a recipe in the workspace."""
    return f"{_slug(photos, '_')}_{index:02d}_{_slug(recipe, '_')}"


def _slug(text: str, separator: str) -> str:
    """The words of a text, joined."""
    return separator.join(re.findall(r"[a-z0-9]+", text))


def write_settings(
    root: Path, recipes: Sequence[str], indices: Sequence[int], photos: str
) -> Workspace:
    """Write the shipped settings with every subject in every recipe."""
    subjects: dict[str, dict[str, Any]] = {}
    for index in indices:
        folder = root / _slug(photos, "-") / f"{index:02d}"
        noun = draw(folder, index, photos)
        for recipe in recipes:
            subjects[key_of(index, recipe, photos)] = drawn_runs.subject(
                folder, noun, RECIPES[recipe]
            )
    return drawn_runs.write_workspace(root, drawn_runs.shipped_settings(), subjects)


def train(workspace: Workspace, key: str) -> None:
    """Run the stages, unless they have run."""
    began = time.monotonic()
    view = config.load_view(workspace, key)
    if view.data.captions:
        _, suggested = captioning.suggest(view, workspace.places(key))
        for photo, caption in suggested.items():
            write_caption(workspace.resolve(view.subject.instance_dir), photo, caption)
    if drawn_runs.run_stages(workspace, key, STAGES):
        logging.info("%s: %.0f s", key, time.monotonic() - began)


def measure(workspace: Workspace, index: int, recipe: str, photos: str) -> Run:
    """The measures of a finished run."""
    key = key_of(index, recipe, photos)
    evaluation = Evaluation.read(workspace.stage_dir(key, "evaluate"))
    selection = Selection.read(workspace.stage_dir(key, "select"))
    place_right = make_place_accuracy(ROOT / "assets" / "pocket-classifier")
    base, real = evaluation.row(STEP_0), evaluation.row(REAL)

    def closed(row: CheckpointScore) -> Row:
        assert row.step is not None
        means, start, end = row.means(), base.means(), real.means()
        right = place_right(workspace, key, row.name, evaluation)
        assert right is not None
        way = (means["dino"] - start["dino"]) / (end["dino"] - start["dino"])
        lost = (start["clip_t"] - means["clip_t"]) / evaluation.text_range
        return Row(row.step, row.n, round(way, 3), round(lost, 3), round(right, 3))

    rows = {row.name: closed(row) for row in evaluation.rows if row.step}
    return Run(
        subject=f"{index:02d}",
        recipe=recipe,
        photos=photos,
        qualified=selection.qualified,
        chosen=rows[str(selection.best)],
        last=list(rows.values())[-1],
        rows=tuple(rows.values()),
    )


def table(runs: Sequence[Run]) -> str:
    """The runs as a Markdown table, each recipe with its mean."""
    lines = [
        "| recipe | subject | chosen / last checkpoint | DINO way closed | CLIP-T lost "
        "| place right |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in dict.fromkeys(run.recipe for run in runs):
        own = [run for run in runs if run.recipe == recipe]
        for run in own:
            lines.append(_line(recipe, run.subject, [asdict(run.chosen)], [asdict(run.last)]))
        ends = [[asdict(getattr(run, end)) for run in own] for end in ("chosen", "last")]
        lines.append(_line(f"**{recipe}**", f"mean of {len(own)}", *ends))
    return "\n".join(lines)


def _line(
    recipe: str, name: str, chosen: list[dict[str, float]], last: list[dict[str, float]]
) -> str:
    def both(field: str, form: str) -> str:
        means = [float(np.mean([row[field] for row in rows])) for rows in (chosen, last)]
        return " / ".join(format(mean, form) for mean in means)

    cells = [
        recipe, name, both("step", ".0f"), both("dino_closed", ".2f"), both("clip_t_lost", ".2f"),
        both("place_right", ".0%"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=ROOT / ".state" / "one-place")
    parser.add_argument("--recipes", default="shipped,auto,files", help=", ".join(RECIPES))
    parser.add_argument("--subjects", default="0-7", help="first-last")
    parser.add_argument("--photos", choices=PHOTOS, default="one-place")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    first, last = map(int, arguments.subjects.split("-"))
    indices = range(first, last + 1)
    photos = PHOTOS[arguments.photos]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    root, recipes = arguments.workspace.resolve(), arguments.recipes.split(",")
    workspace = write_settings(root, recipes, indices, photos)
    runs = []
    for index in indices:
        for recipe in recipes:
            train(workspace, key_of(index, recipe, photos))
            runs.append(measure(workspace, index, recipe, photos))
            if arguments.json:
                keep(runs[-1])
    runs.sort(key=lambda run: recipes.index(run.recipe))
    print(table(runs))


def keep(run: Run) -> None:
    """Add a run to the results, or replace it there."""
    kept = json.loads(RESULTS.read_text())["runs"] if RESULTS.is_file() else []
    found = {(one["photos"], one["recipe"], one["subject"]): one for one in kept}
    found[run.photos, run.recipe, run.subject] = json.loads(json.dumps(asdict(run)))
    ordered = [found[key] for key in sorted(found)]
    files.write_json(RESULTS, {"machine": machine(), "seed": SEED, "runs": ordered})


if __name__ == "__main__":
    main()
