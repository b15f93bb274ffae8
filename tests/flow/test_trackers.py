"""One setting sends the curves to TensorBoard, and no byte of the results depends on it."""

from __future__ import annotations

import shutil
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_core import files
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def train(workspace: Workspace, *stages: str) -> dict[str, str]:
    for stage in stages:
        stage_call = (sys.executable, "-m", "dreambooth_core", stage)
        workspaces.run_in(workspace.root, *stage_call, "--subject", workspaces.SUBJECT)
    return files.tree_hashes(workspace.stage_dir(workspaces.SUBJECT, "train"))


def test_curves_are_in_tensorboard_and_results_are_unchanged(tmp_path):
    workspace = workspaces.build(tmp_path / "project")
    workspaces.change(workspace.root, "select.early_stopping_patience", None)
    plain = train(workspace, "validate", "class-images", "cache", "train")
    shutil.rmtree(workspace.state / "train")
    shutil.rmtree(workspace.stage_dir(workspaces.SUBJECT, "train"))
    workspaces.change(workspace.root, "runtime.report_to", ["tensorboard"])
    workspaces.change(workspace.root, "runtime.log_every_steps", 2)
    assert train(workspace, "train") == plain
    (run,) = (workspace.state / "trackers" / workspaces.SUBJECT).iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    losses = {"loss", "loss_instance", "loss_class", "grad_norm"}
    assert set(events.Tags()["scalars"]) == losses | {"learning_rate", "steps_per_second"}
    assert [each.step for each in events.Scalars("loss")] == [2, 4]
