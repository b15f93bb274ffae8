"""Records of a small run, as the stages would hand them to the registry."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core import files
from dreambooth_core.records import (
    BaseModelIdentity,
    Checkpoint,
    Harness,
    Interval,
    ModelVersion,
    ScorerIdentity,
    ScoreRow,
    Scores,
    Selection,
)
from dreambooth_core.registry.package import Serving
from dreambooth_core.registry.versions import Candidate, Lineage

MODEL = "dreambooth-mug"
BLOCK, STEPS, GUIDANCE, SIDE = 4, 3, 3.0, 64


def checkpoint(step: int) -> Checkpoint:
    name = f"checkpoint-{step}"
    return Checkpoint(
        name=name, step=step, method="full", sha256=files.sha256_bytes(name.encode()), files={}
    )


def row(name: str, step: int | None, value: float) -> ScoreRow:
    interval = Interval(mean=value, low=value - 0.01, high=value + 0.01)
    return ScoreRow(
        name=name, step=step, n=32, clip_t=interval, clip_i=interval, dino=interval,
        pres=interval, div=None if step is None else interval,
    )  # fmt: skip


def scores(*steps: int, suite: str = "pocket") -> Scores:
    harness = Harness(
        suite=suite,
        prompts=("a photo of sks mug on the beach",),
        class_prompt="a photo of mug",
        seeds=(1, 2),
        class_seeds=(3,),
        scorers={"clip": ScorerIdentity(name="clip", backbone="tiny", sha256="0" * 64)},
        sampler="pndm",
        steps=STEPS,
        guidance=GUIDANCE,
        resolution=SIDE,
        batch_size=BLOCK,
        instance_sha256="1" * 64,
    )
    rows = [row("step 0", 0, 0.3), row("real", None, 0.9)]
    rows += [row(f"checkpoint-{step}", step, 0.3 + step / 1000) for step in steps]
    return Scores(harness=harness, text_range=0.2, rows=tuple(rows))


def selection(best: int, *, qualified: bool = True) -> Selection:
    return Selection(
        best=f"checkpoint-{best}", qualified=qualified, rule="highest DINO of those", ranked=()
    )


def serving(**changes: object) -> Serving:
    values: dict = {"steps": STEPS, "guidance": GUIDANCE, "resolution": SIDE, "block_size": BLOCK}
    return Serving(**{**values, **changes})


def candidate(export: Path, *, fingerprint: str = "f" * 64, step: int = 100, **changes: object):
    chosen = checkpoint(step)
    lineage = Lineage(
        settings=changes.pop("settings", {"train": {"learning_rate": 5e-6}}),
        data_sha256="d" * 64,
        base_model=BaseModelIdentity(name="assets/tiny", revision=None, sha256="b" * 64),
        dvc_hashes={"train": "0123456789abcdef0123456789abcdef.dir"},
        git_commit="c" * 40,
    )
    values: dict = {
        "record": ModelVersion(
            name=MODEL, fingerprint=fingerprint, checkpoint=chosen.name, sha256=chosen.sha256
        ),
        "checkpoint": chosen,
        "row": next(row for row in scores(step).rows if row.name == chosen.name),
        "scores": scores(step),
        "selection": selection(step),
        "export": export,
        "serving": serving(),
        "lineage": lineage,
        "card": "---\ntags: []\n---\n\n# A mug\n\nBest of two checkpoints.",
        "description": "# A mug\n\nBest of two checkpoints.",
        "prompt": "a photo of sks mug",
    }
    return Candidate(**{**values, **changes})
