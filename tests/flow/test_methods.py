"""Training methods of params.yaml, through all stages up to a registered version."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_core.records import LatentCache, TrainingRun
from dreambooth_core.workspace import STAGES, Workspace
from tests import tiny_models
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

LORA = {"rank": 4, "lora_alpha": 6.0, "lora_dropout": 0.0, "lora_layers": ["to_q", "to_v"]}


def _run_stages(workspace: Workspace, stages: Sequence[str]) -> None:
    """Run each stage in a new process."""
    for stage in stages:
        command = (sys.executable, "-m", "dreambooth_core", stage, "--subject", SUBJECT)
        workspaces.run_in(workspace.root, *command)


def _through_all_stages(workspace: Workspace) -> TrainingRun:
    """All stages but the page; register samples the scored images again."""
    _run_stages(workspace, STAGES[:-1])
    assert (workspace.stage_dir(SUBJECT, "register") / "version.json").is_file()
    return TrainingRun.read(workspace.stage_dir(SUBJECT, "train"))


def _draw(workspace: Workspace) -> list[Path]:
    out = workspace.root / "pictures"
    checkpoint = str(workspace.stage_dir(SUBJECT, "train") / "checkpoint-4")
    arguments = ("--prompt", "a photo of sks mug", "--out", str(out), "--num", "2", "--no-sheet")
    command = (sys.executable, "-m", "cli", "generate", "--model", checkpoint, *arguments)
    workspaces.run_in(workspace.root, *command)
    return sorted(out.iterdir())


def test_sdxl_lora_on_all_networks_becomes_a_version(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path)
    shutil.rmtree(tmp_path / "assets" / "pocket-sd")
    tiny_models.build_tiny_sdxl(tmp_path / "assets" / "pocket-sd")
    for key, value in {"method": "lora", "lora": LORA, "train_text_encoder": True}.items():
        workspaces.change(tmp_path, f"train.{key}", value)
    run = _through_all_stages(workspace)
    assert [c.method for c in run.checkpoints] == ["lora", "lora"]
    assert len(_draw(workspace)) == 2


def test_masks_change_the_training_and_nothing_before_it(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path)
    workspaces.change(tmp_path, "select.early_stopping_patience", None)
    runs, caches = {}, {}
    masks = tmp_path / "data" / "instance" / SUBJECT / "masks"
    masks.mkdir()
    for photo in masks.parent.glob("*.png"):
        half = Image.new("L", Image.open(photo).size, 0)
        half.paste(255, (0, 0, half.width // 2, half.height))
        half.save(masks / photo.name)
    for value in (None, "auto", "files"):
        workspaces.change(tmp_path, "data.masks", value)
        _run_stages(workspace, STAGES[: STAGES.index("train") + 1])
        runs[value] = TrainingRun.read(workspace.stage_dir(SUBJECT, "train"))
        caches[value] = LatentCache.read(workspace.stage_dir(SUBJECT, "cache"))
    assert caches[None].weights_file is None
    hashes = [caches[value].files["weights.safetensors"] for value in ("auto", "files")]
    assert hashes[0] != hashes[1]
    assert caches["files"].images == caches["auto"].images == caches[None].images
    assert len({run.checkpoints[0].sha256 for run in runs.values()}) == 3


def test_text_encoder_captions_and_ema_train_then_lora_by_one_setting(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path)
    photos = tmp_path / "data" / "instance" / SUBJECT
    (photos / "photo-1.txt").write_text("sks mug on a table")
    changes = {"data.captions": True, "train.train_text_encoder": True, "train.ema_decay": 0.9}
    for key, value in {**changes, "data.caption_rate": 0.5, "train.lora": LORA}.items():
        workspaces.change(tmp_path, key, value)
    full = _through_all_stages(workspace)
    assert {name.split("/")[0] for name in full.checkpoints[0].files} == {"unet", "text_encoder"}
    cache = LatentCache.read(workspace.stage_dir(SUBJECT, "cache"))
    prompts = {image.image: image.prompt for image in cache.images if image.role == "instance"}
    assert prompts["images/001.png"] == "sks mug on a table"
    assert [i.instance_prompt for i in cache.images if i.prompt == "sks mug on a table"] == [
        prompts["images/000.png"]
    ]
    assert prompts["images/000.png"] == "a photo of sks mug"

    workspaces.change(tmp_path, "train.method", "lora")
    adapters = _through_all_stages(workspace)
    assert {c.method for c in adapters.checkpoints} == {"lora"}
    assert LatentCache.read(workspace.stage_dir(SUBJECT, "cache")) == cache
    rows = list(csv.DictReader((workspace.stage_dir(SUBJECT, "evaluate") / "curves.csv").open()))
    assert [row["step"] for row in rows] == ["0", "2", "4"]
    assert len(_draw(workspace)) == 2
