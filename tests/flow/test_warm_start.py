"""A training that starts from a registered version."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.records import TrainingRun
from dreambooth_core.registry import versions
from dreambooth_core.registry.tracking import resolve_tracking
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1800)]

CHAMPION = "train.init_from=models:/dreambooth-mug@champion"


def run(workspace: Workspace, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "cli", "run", SUBJECT, "--json", *options]
    return json.loads(workspaces.run_in(workspace.root, *command).stdout)


def test_version_trained_from_the_champion_names_it_and_is_kept(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path / "checkout")
    unknown = workspaces.run_in(
        workspace.root,
        *(sys.executable, "-m", "cli", "run", SUBJECT, "--set", CHAMPION),
        check=False,
    )
    assert unknown.returncode == 2
    assert "train.init_from: the registry has no model 'dreambooth-mug'" in unknown.stderr
    assert not workspace.stage_dir(SUBJECT, "validate").is_dir()
    first = run(workspace)["version"]
    second = run(workspace, "--set", CHAMPION)["version"]
    assert (first["version"], second["version"]) == (1, 2)
    training = TrainingRun.read(workspace.stage_dir(SUBJECT, "train"))
    assert training.init_from is not None
    assert training.init_from.to_json() == {"name": "dreambooth-mug", "sha256": first["sha256"]}
    tracking = resolve_tracking(workspace)
    tags = versions.get_version(tracking, name="dreambooth-mug", version=2).tags
    assert tags["init_from"] == "models:/dreambooth-mug/1"
    assert tags["init_from_sha256"] == first["sha256"]
    by_number = run(workspace, "--set", "train.init_from=models:/dreambooth-mug/1")
    skipped = {stage["stage"]: stage["skipped"] for stage in by_number["stages"]}
    assert TrainingRun.read(workspace.stage_dir(SUBJECT, "train")) == training
    assert by_number["version"]["version"] == 2, skipped
