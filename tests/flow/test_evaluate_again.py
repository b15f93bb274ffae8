"""`dreambooth evaluate-again`: old versions under a new scorer, old scores kept, failures named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
from mlflow import MlflowClient

from dreambooth_core.workspace import Workspace
from tests import tiny_models
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1800)]

MODEL = "dreambooth-mug"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two versions of one subject; a second subject that has none. The tests run in order."""
    made = workspaces.build(
        tmp_path_factory.mktemp("workspace") / "checkout", subjects=(SUBJECT, "dog")
    )
    for rate in (1e-4, 3e-4):
        workspaces.change(made.root, "train.learning_rate", rate)
        workspaces.run_in(made.root, sys.executable, "-m", "cli", "run", SUBJECT)
    return made


def evaluate_again(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return workspaces.run_in(
        workspace.root,
        *(sys.executable, "-m", "cli", "evaluate-again", *arguments, "--json"),
        check=False,
    )


def states(done: subprocess.CompletedProcess[str], subject: str = SUBJECT) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [each["state"] for each in json.loads(done.stdout)["subjects"][subject]["versions"]]


def tags(workspace: Workspace, version: int) -> dict[str, Any]:
    client = MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")
    return dict(client.get_model_version(MODEL, str(version)).tags)


def use_other_dino(workspace: Workspace, name: str, seed: int) -> None:
    """Let another network score."""
    tiny_models.build_tiny_dino(workspace.root / "assets" / name, seed=seed)
    workspaces.change(workspace.root, "evaluate.dino", f"assets/{name}")


def test_new_scorer_scores_all_versions_once_and_keeps_old_scores(workspace: Workspace) -> None:
    before = [tags(workspace, version) for version in (1, 2)]
    use_other_dino(workspace, "other-dino", 5)
    shutil.rmtree(workspace.state / "evaluate" / "images")  # the registry has the weights
    done = evaluate_again(workspace, "--all")
    assert states(done) == ["scored", "scored"]
    assert states(done, "dog") == []
    for old, version in zip(before, (1, 2), strict=True):
        new = tags(workspace, version)
        added = sorted(new.keys() - old.keys())
        assert new.items() >= old.items()
        assert [tag.startswith("scores.") for tag in added] == [True]
        result = json.loads(done.stdout)["subjects"][SUBJECT]["versions"][version - 1]
        assert json.loads(new[added[0]])["dino"]["mean"] == result["scores"]["dino"]
        assert result["scores"]["dino"] != result["before"]["dino"]
        assert result["scores"]["clip_t"] == pytest.approx(result["before"]["clip_t"], abs=1e-6)
    assert states(evaluate_again(workspace, SUBJECT)) == ["recorded before"] * 2


def test_version_without_files_fails_alone_and_by_name(workspace: Workspace) -> None:
    use_other_dino(workspace, "third-dino", 6)
    shutil.rmtree(workspace.state / "evaluate" / "images")
    client = MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")
    source = client.get_model_version(MODEL, "1").source
    model = client.get_logged_model(str(source).rsplit("/", 1)[-1])
    shutil.rmtree(model.artifact_location.removeprefix("file://"))
    for folder in workspace.state.rglob(model.model_id):
        shutil.rmtree(folder)
    done = evaluate_again(workspace, SUBJECT)
    assert done.returncode == 1
    assert "mug, version 1: " in done.stderr
    assert "version 2" not in done.stderr
    assert "Traceback" not in done.stderr
    third = [sum(tag.startswith("scores.") for tag in tags(workspace, v)) for v in (1, 2)]
    assert third == [1, 2]


def test_unknown_subject_is_refused_before_anything_starts(workspace: Workspace) -> None:
    done = evaluate_again(workspace, "mgu")
    assert done.returncode == 2
    assert "mug" in done.stderr
    assert "evaluate-again takes the name of one subject" in evaluate_again(workspace).stderr
