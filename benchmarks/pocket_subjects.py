"""Train the six example subjects and evaluate the checkpoints that the pipeline selects.

    python -m benchmarks.pocket_subjects [--variants shipped,no-prior,long] [--json] [--sheet FILE]

Each subject trains in three variants:

    shipped     params.yaml unchanged
    no-prior    prior_loss_weight 0
    long        five times the steps

The pipeline's stages run in a separate workspace and resume there. `--json` prints JSON instead of
a table, `--sheet FILE` writes a sheet of images.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import drawn_runs
from benchmarks.common import ROOT
from dreambooth_core import config
from dreambooth_core.evaluation.extractors import DinoScorer, load_dino
from dreambooth_core.evaluation.scores import open_image
from dreambooth_core.numerics.similarity import (
    Floats,
    cosines,
    mean_estimate,
    pair_mean,
)
from dreambooth_core.pipeline import StageContext, run_stage
from dreambooth_core.pipeline.common import picture_name, row_pictures
from dreambooth_core.records import (
    REAL,
    STEP_0,
    CheckpointScore,
    Evaluation,
    Interval,
    Manifest,
    Selection,
)
from dreambooth_core.report import grid
from dreambooth_core.workspace import Workspace
from tools.pocket.classifier import load_classifier
from tools.pocket.scenes import PLACE_NAMES
from tools.pocket.world import PLACES

VARIANTS = ("shipped", "no-prior", "long")
STAGES = ("validate", "class-images", "cache", "train", "evaluate", "select")
LONG_ROWS = 10  # checkpoints of a long run
RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """One training of one subject."""

    subject: str
    variant: str
    chosen: str
    last: str
    qualified: bool
    dino_closed: Interval
    clip_t_lost: float
    place_right: float | None
    class_div_kept: Interval
    pres: float
    pres_step_0: float
    seconds: dict[str, float]


def nouns() -> dict[str, str]:
    """Class noun of each example subject."""
    return {
        p.name: p.name.split("-")[0] for p in sorted((ROOT / "examples").iterdir()) if p.is_dir()
    }


def write_settings(root: Path) -> Workspace:
    """Write the shipped settings with all subjects in all variants."""
    settings = drawn_runs.shipped_settings()
    steps = settings["train"]["max_train_steps"]
    overrides = {
        "shipped": {},
        "no-prior": {"prior": {"prior_loss_weight": 0.0}},
        "long": {
            "train": {
                "max_train_steps": 5 * steps,
                "checkpointing_steps": 5 * steps // LONG_ROWS,
            }
        },
    }
    subjects = {
        key_of(name, variant): drawn_runs.subject(
            ROOT / "examples" / name, noun, overrides[variant]
        )
        for name, noun in nouns().items()
        for variant in VARIANTS
    }
    return drawn_runs.write_workspace(root, settings, subjects)


def key_of(name: str, variant: str) -> str:
    """The subject's name in the workspace."""
    return f"{name}_{variant}".replace("-", "_")


def train(workspace: Workspace, name: str, variant: str) -> dict[str, float]:
    """Run the stages; returns the seconds of each."""
    key = key_of(name, variant)
    view, places = config.load_view(workspace, key), workspace.places(key)
    context = StageContext(view, places, env={"DVC_EXP_NAME": key})  # no registry
    seconds: dict[str, float] = {}
    for stage in STAGES:
        began = time.monotonic()
        run_stage(context, stage)
        seconds[stage] = round(time.monotonic() - began, 1)
    return seconds


def row_of(
    workspace: Workspace,
    name: str,
    variant: str,
    *,
    seconds: dict[str, float],
    accuracy: PlaceAccuracy,
) -> Row:
    """The scores of the selected checkpoint of one training."""
    key = key_of(name, variant)
    evaluation = Evaluation.read(workspace.stage_dir(key, "evaluate"))
    selection = Selection.read(workspace.stage_dir(key, "select"))
    base, real = evaluation.row(STEP_0), evaluation.row(REAL)
    best = evaluation.row(selection.best or STEP_0)
    checkpoints = [row for row in evaluation.rows if row.step]
    assert base.dino and real.dino and base.clip_t and best.clip_t and base.pres and best.pres
    way = real.dino.mean - base.dino.mean
    gained = np.array([b.dino - a.dino for a, b in zip(base.images, best.images, strict=True)])
    closed = mean_estimate(gained / way, samples=2000, seed=0)
    lost = (base.clip_t.mean - best.clip_t.mean) / evaluation.text_range
    return Row(
        subject=name,
        variant=variant,
        chosen=best.name,
        last=checkpoints[-1].name,
        qualified=selection.qualified,
        dino_closed=Interval(**closed._asdict()),
        clip_t_lost=lost,
        place_right=accuracy(workspace, key, best.name, evaluation),
        class_div_kept=div_kept(workspace, key, best, base),
        pres=best.pres.mean,
        pres_step_0=base.pres.mean,
        seconds=seconds,
    )


def div_kept(
    workspace: Workspace, key: str, row: CheckpointScore, base: CheckpointScore
) -> Interval:
    """DIV of the class prompt relative to step 0, with an interval over images of equal seeds."""
    mine, theirs = (distances(workspace, key, one) for one in (row, base))
    kept = pair_mean(mine, [0] * len(mine)) / pair_mean(theirs, [0] * len(theirs))
    drawn = np.random.default_rng(0).integers(0, len(mine), (RESAMPLES, len(mine)))
    ratios = [_mean_of_different(mine, draw) / _mean_of_different(theirs, draw) for draw in drawn]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(mean=kept, low=float(low), high=float(high))


def _mean_of_different(values_KK: Floats, draw_K: NDArray[np.int64]) -> float:
    """Mean over pairs of resampled images, without pairs of an image with itself."""
    different = draw_K[:, None] != draw_K[None, :]
    return float(values_KK[np.ix_(draw_K, draw_K)][different].mean())


def distances(workspace: Workspace, key: str, row: CheckpointScore) -> Floats:
    """DINO distances among a row's images of the class prompt."""
    features = class_features(workspace, key, row)
    return 1.0 - cosines(features, features)


def class_features(workspace: Workspace, key: str, row: CheckpointScore) -> Floats:
    """DINO features of a row's images of the class prompt."""
    paths = sorted(row_pictures(workspace.stage_dir(key, "evaluate"), row.name).glob("*.png"))
    return scorer().images([open_image(path) for path in paths[row.n :]])


@functools.cache
def scorer() -> DinoScorer:
    return load_dino("assets/pocket-dino", root=ROOT, device=torch.device("cpu"))


def pres_without_prior(workspace: Workspace, name: str) -> Interval:
    """The increase of PRES without prior preservation, paired by seed.

    Both variants are evaluated at the step that the shipped settings select.
    """
    best = chosen(workspace, key_of(name, "shipped"))
    photos = workspace.stage_dir(key_of(name, "shipped"), "validate")
    accepted = [photos / image.file for image in Manifest.read(photos).images]
    real_MD = scorer().images([open_image(path) for path in accepted])
    pres = []
    for variant in ("no-prior", "shipped"):
        key = key_of(name, variant)
        row = Evaluation.read(workspace.stage_dir(key, "evaluate")).row(best)
        pres.append(cosines(class_features(workspace, key, row), real_MD).mean(axis=1))
    higher = mean_estimate(pres[0] - pres[1], samples=RESAMPLES, seed=0)
    return Interval(**higher._asdict())


def chosen(workspace: Workspace, key: str) -> str:
    """Name of the selected row."""
    return Selection.read(workspace.stage_dir(key, "select")).best or STEP_0


def draw_sheet(workspace: Workspace, path: Path) -> None:
    """Write one row per subject: photos, step 0, the selected checkpoint, its class, and failures.

    Each cell is the first image of its prompt, without any selection.
    """
    names = list(nouns())
    columns: dict[str, list[Path]] = {}
    for name in names:
        for title, picture in sheet_cells(workspace, name).items():
            columns.setdefault(title, []).append(picture)
    grid.write_grid(path, plan_prompts=names, columns=columns)


def sheet_cells(workspace: Workspace, name: str) -> dict[str, Path]:
    """The images of a subject's row by column title."""
    shipped, without, long = (key_of(name, variant) for variant in VARIANTS)

    def cell(key: str, row: str, index: int) -> Path:
        return row_pictures(workspace.stage_dir(key, "evaluate"), row) / picture_name(index)

    best = chosen(workspace, shipped)
    evaluation = Evaluation.read(workspace.stage_dir(shipped, "evaluate"))
    each = len(evaluation.row(best).images) // len(evaluation.harness.prompts)
    first_class = len(evaluation.row(best).images)
    last = Evaluation.read(workspace.stage_dir(long, "evaluate")).rows[-2].name
    photos = workspace.stage_dir(shipped, "validate")
    paths = [photos / image.file for image in Manifest.read(photos).images]
    return {
        "photo 1": paths[0],
        "photo 2": paths[1],
        "step 0, beach": cell(shipped, STEP_0, each),
        "chosen, beach": cell(shipped, best, each),
        "chosen, snow": cell(shipped, best, 2 * each),
        "chosen, night": cell(shipped, best, 4 * each),
        "chosen, room": cell(shipped, best, 6 * each),
        "its class": cell(shipped, best, first_class),
        "class, no prior": cell(without, chosen(workspace, without), first_class),
        "5x steps, night": cell(long, last, 4 * each),
    }


PlaceAccuracy = Callable[[Workspace, str, str, Evaluation], float | None]


def make_place_accuracy(folder: Path) -> PlaceAccuracy:
    """Share of images with the right place by the classifier, among prompts with a place."""
    if not folder.is_dir():
        return lambda *_: None
    classifier = load_classifier(folder).eval()

    def accuracy(workspace: Workspace, key: str, name: str, evaluation: Evaluation) -> float:
        pictures = row_pictures(workspace.stage_dir(key, "evaluate"), name)
        right = total = 0
        for index, image in enumerate(evaluation.row(name).images):
            places = [p for p, phrase in PLACES.items() if image.prompt.endswith(phrase)]
            if not places:
                continue
            pixels = np.asarray(Image.open(pictures / picture_name(index)).convert("RGB"))
            batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            predicted = PLACE_NAMES[int(classifier.predict(batch)["place"])]
            total, right = total + 1, right + (predicted == places[0])
        return right / total

    return accuracy


def table(rows: list[Row]) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        "| subject | variant | chosen | last | DINO way closed (95 %) | CLIP-T lost, of text range "
        "| place right | class DIV kept | PRES (step 0) | qualified |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        place = "-" if r.place_right is None else f"{r.place_right:.0%}"
        c, kept = r.dino_closed, r.class_div_kept
        lines.append(
            f"| {r.subject} | {r.variant} | {r.chosen} | {r.last} "
            f"| {c.mean:.0%} ({c.low:.0%} to {c.high:.0%}) | {r.clip_t_lost:.0%} | {place} "
            f"| {kept.mean:.2f} ({kept.low:.2f} to {kept.high:.2f}) "
            f"| {r.pres:.3f} ({r.pres_step_0:.3f}) | {'yes' if r.qualified else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=ROOT / ".state" / "pocket-subjects")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--subjects", default=",".join(nouns()))
    parser.add_argument("--classifier", type=Path, default=ROOT / "assets" / "pocket-classifier")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    workspace = write_settings(arguments.workspace.resolve())
    accuracy = make_place_accuracy(arguments.classifier)
    rows: list[Row] = []
    for variant in arguments.variants.split(","):
        for name in arguments.subjects.split(","):
            seconds = train(workspace, name, variant)
            rows.append(row_of(workspace, name, variant, seconds=seconds, accuracy=accuracy))
            print(table(rows[-1:]).splitlines()[-1], seconds, file=sys.stderr, flush=True)
    complete = {"shipped", "no-prior"} <= {row.variant for row in rows}
    higher = {n: pres_without_prior(workspace, n) for n in nouns()} if complete else {}
    if arguments.sheet:
        draw_sheet(workspace, arguments.sheet)
    if arguments.json:
        found = {n: interval.to_json() for n, interval in higher.items()}
        print(json.dumps({"rows": [as_data(row) for row in rows], "pres_without_prior": found}))
    else:
        print(table(rows))
        for name, i in higher.items():
            print(
                f"{name}: PRES without prior higher by {i.mean:.3f} ({i.low:.3f} to {i.high:.3f})"
            )


def as_data(row: Row) -> dict[str, Any]:
    """Convert a row to JSON types."""
    intervals = {"dino_closed": row.dino_closed, "class_div_kept": row.class_div_kept}
    return asdict(row) | {name: interval.to_json() for name, interval in intervals.items()}


if __name__ == "__main__":
    main()
