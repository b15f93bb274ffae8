"""DreamBooth on the six example subjects: does the pipeline choose a checkpoint that is good?

For each subject three trainings, all with the shipped settings but for one thing:

    shipped     params.yaml as it is
    no-prior    the prior term weighs nothing
    long        five times the steps

They run through the pipeline's own stages in a workspace of their own, which goes on where it was
when run again. `--json` prints the table as data.

    python benchmarks/pocket_subjects.py [--variants shipped,no-prior,long] [--json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from ruamel.yaml import YAML  # noqa: E402

from dreambooth_core.evaluation.extractors import load_dino  # noqa: E402
from dreambooth_core.evaluation.scores import open_image  # noqa: E402
from dreambooth_core.numerics.similarity import cosines, mean_estimate, pair_mean  # noqa: E402
from dreambooth_core.pocket.classifier import load_classifier  # noqa: E402
from dreambooth_core.pocket.scenes import PLACE_NAMES  # noqa: E402
from dreambooth_core.pocket.world import PLACES  # noqa: E402
from dreambooth_core.records import CheckpointScore, Evaluation, Interval, Selection  # noqa: E402
from dreambooth_core.stages import StageContext, run_stage  # noqa: E402
from dreambooth_core.stages.common import picture_name, row_pictures  # noqa: E402
from dreambooth_core.workspace import Workspace  # noqa: E402

VARIANTS = ("shipped", "no-prior", "long")
STAGES = ("validate", "class-images", "cache", "train", "evaluate", "select")
LONG_ROWS = 10  # checkpoints of a long run


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
    class_div_kept: float
    pres: float
    pres_step_0: float
    seconds: dict[str, float]


def nouns() -> dict[str, str]:
    """Class noun of each example, by its folder's name."""
    return {
        p.name: p.name.split("-")[0] for p in sorted((ROOT / "examples").iterdir()) if p.is_dir()
    }


def write_settings(root: Path) -> None:
    """The shipped settings with all examples in all variants."""
    yaml = YAML()
    settings = yaml.load(ROOT / "params.yaml")
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
    settings["subjects"] = {
        key_of(name, variant): {
            "instance_dir": str(ROOT / "examples" / name),
            "identifier": "sks",
            "class_noun": noun,
            "prompts": None,
            "overrides": overrides[variant],
        }
        for name, noun in nouns().items()
        for variant in VARIANTS
    }
    root.mkdir(parents=True, exist_ok=True)
    yaml.dump(settings, root / "params.yaml")
    if not (root / "assets").exists():
        (root / "assets").symlink_to(ROOT / "assets")


def key_of(name: str, variant: str) -> str:
    """Name of a subject's variant in the workspace."""
    return f"{name}_{variant}".replace("-", "_")


def train(context: StageContext, name: str, variant: str) -> dict[str, float]:
    """Run the stages; seconds of each."""
    seconds: dict[str, float] = {}
    for stage in STAGES:
        began = time.monotonic()
        run_stage(context, key_of(name, variant), stage)
        seconds[stage] = round(time.monotonic() - began, 1)
    return seconds


def row_of(
    workspace: Workspace, name: str, variant: str, *, seconds: dict[str, float], judge: Judge
) -> Row:
    """The figures of one training, after issue: what the selected checkpoint reached."""
    key = key_of(name, variant)
    evaluation = Evaluation.read(workspace.stage_dir(key, "evaluate"))
    selection = Selection.read(workspace.stage_dir(key, "select"))
    base, real = evaluation.row("step 0"), evaluation.row("real")
    best = evaluation.row(selection.best or "step 0")
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
        place_right=judge(workspace, key, best.name, evaluation),
        class_div_kept=class_div(workspace, key, best) / class_div(workspace, key, base),
        pres=best.pres.mean,
        pres_step_0=base.pres.mean,
        seconds=seconds,
    )


def class_div(workspace: Workspace, key: str, row: CheckpointScore) -> float:
    """DIV among a row's pictures of the class prompt: mean pairwise DINO distance."""
    pictures = row_pictures(workspace.stage_dir(key, "evaluate"), row.name)
    paths = sorted(pictures.glob("*.png"))[row.n :]
    dino = load_dino("assets/pocket-dino", root=ROOT, device=torch.device("cpu"))
    features = dino.images([open_image(path) for path in paths])
    return pair_mean(1.0 - cosines(features, features), [0] * len(paths))


Judge = Callable[[Workspace, str, str, Evaluation], float | None]


def make_judge(folder: Path) -> Judge:
    """Share of a row's images, of prompts that name a place, in which the judge sees that place."""
    if not folder.is_dir():
        return lambda *_: None
    classifier = load_classifier(folder).eval()

    def judge(workspace: Workspace, key: str, name: str, evaluation: Evaluation) -> float:
        pictures = row_pictures(workspace.stage_dir(key, "evaluate"), name)
        right = asked = 0
        for index, image in enumerate(evaluation.row(name).images):
            places = [p for p, phrase in PLACES.items() if image.prompt.endswith(phrase)]
            if not places:
                continue
            pixels = np.asarray(Image.open(pictures / picture_name(index)).convert("RGB"))
            batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            seen = PLACE_NAMES[int(classifier.read(batch)["place"])]
            asked, right = asked + 1, right + (seen == places[0])
        return right / asked

    return judge


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| subject | variant | chosen | last | DINO way closed (95 %) | CLIP-T lost, of text range "
        "| place right | class DIV kept | PRES (step 0) | qualified |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        place = "-" if r.place_right is None else f"{r.place_right:.0%}"
        c = r.dino_closed
        lines.append(
            f"| {r.subject} | {r.variant} | {r.chosen} | {r.last} "
            f"| {c.mean:.0%} ({c.low:.0%} to {c.high:.0%}) | {r.clip_t_lost:.0%} | {place} "
            f"| {r.class_div_kept:.2f} | {r.pres:.3f} ({r.pres_step_0:.3f}) "
            f"| {'yes' if r.qualified else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=ROOT / ".state" / "pocket-subjects")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--subjects", default=",".join(nouns()))
    parser.add_argument("--judge", type=Path, default=ROOT / "assets" / "pocket-classifier")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    workspace = Workspace(arguments.workspace.resolve())
    write_settings(workspace.root)
    context = StageContext(workspace, experiment=True)
    judge = make_judge(arguments.judge)
    rows: list[Row] = []
    for variant in arguments.variants.split(","):
        for name in arguments.subjects.split(","):
            seconds = train(context, name, variant)
            rows.append(row_of(workspace, name, variant, seconds=seconds, judge=judge))
            print(table(rows[-1:]).splitlines()[-1], seconds, file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps([{**asdict(r), "dino_closed": r.dino_closed.to_json()} for r in rows]))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
