"""A new photo retrains a subject, and the new version becomes the champion (the pocket model)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.receiver import receiving
from tests.flow.running_up import running, wait_for
from tests.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(3000)]

SUBJECT = "robot"
PHOTOS = ROOT / "examples" / "robot-sunny"
SETTINGS = {
    "prior.num_class_images": 32,
    "train.max_train_steps": 240,
    "train.checkpointing_steps": 120,
    "compute.device": "cpu",
}
TRIAL = ("--set", "train.max_train_steps=20", "--set", "train.checkpointing_steps=20")


@pytest.fixture
def project(tmp_path: Path) -> Workspace:
    """A new project with a subject of three photos, tried out with a short training."""
    run = [sys.executable, "-m", "cli"]
    workspaces.run_in(tmp_path, *run, "init", "project")
    root = tmp_path / "project"
    for key, value in SETTINGS.items():
        workspaces.change(root, key, value)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("01.png", "02.png", "03.png"):
        shutil.copy(PHOTOS / name, photos)
    workspaces.run_in(
        root, *run, "subject", "add", SUBJECT, "--class-noun", "robot", "--images", str(photos)
    )
    workspaces.run_in(root, *run, "run", SUBJECT, *TRIAL)
    return Workspace(root)


def test_new_photo_starts_a_run_that_ends_in_a_promotion(
    project: Workspace, tmp_path: Path
) -> None:
    with receiving("/hook") as receiver, running(project, tmp_path / "log") as up:
        up.call("cli", "notify", receiver.url)
        before = json.loads(up.call("cli", "compare", SUBJECT, "--json"))["versions"]
        assert [version["aliases"] for version in before] == [["challenger"]]
        shutil.copy(PHOTOS / "04.png", project.root / "data" / "instance" / SUBJECT)
        ended = ("completed", "failed", "crashed")
        wait_for(
            lambda: any(f"train-subject robot: {state}" in up.printed() for state in ended),
            timeout_s=2400,
        )
        assert "train-subject robot: completed" in up.printed()
        wait_for(lambda: receiver.calls)
        told = receiver.calls[0]["payload"]
        assert (told["subject"], told["version"], told["how"]) == (SUBJECT, 2, "comparison")
        after = json.loads(up.call("cli", "compare", SUBJECT, "--json"))["versions"]
        assert [version["aliases"] for version in after] == [[], ["champion"]]
        assert after[0]["tags"]["data_sha256"] != after[1]["tags"]["data_sha256"]
        assert after[1]["scores"]["dino"] > after[0]["scores"]["dino"] + 0.2
    assert up.printed().count("train-subject robot: running") == 1
