"""After the selection, only the selected checkpoint stays in the training's output."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from dreambooth_core import config, files
from dreambooth_core.pipeline import StageContext, retention
from dreambooth_core.records import Selection, TrainingRun
from dreambooth_core.workspace import Workspace
from flows.train_subject import train_subject
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT, change, dvc, run_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # dozens, all from libraries
]

NAMES = ("checkpoint-2", "checkpoint-4")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace after one run; its tests run in order."""
    root = tmp_path_factory.mktemp("workspace") / "checkout"
    with prefect_test_harness(server_startup_timeout=300), pytest.MonkeyPatch.context() as patch:
        workspaces.use_environment(root, patch)
        built = workspaces.build(root)
        _run(built)
        yield built


def _run(workspace: Workspace) -> None:
    train_subject(SUBJECT, str(workspace.root))


def _stage(workspace: Workspace, stage: str, *, check: bool = True) -> str:
    command = (sys.executable, "-m", "dreambooth_core", stage, "--subject", SUBJECT)
    done = run_in(workspace.root, *command, check=check)
    return done.stdout + done.stderr


def _train_dir(workspace: Workspace) -> Path:
    return workspace.stage_dir(SUBJECT, "train")


def _selected(workspace: Workspace) -> str:
    best = Selection.read(workspace.stage_dir(SUBJECT, "select")).best
    assert best is not None
    return best


def _context(workspace: Workspace) -> StageContext:
    env = workspaces.environment(workspace.root)
    return StageContext(config.load_view(workspace, SUBJECT), workspace.places(SUBJECT), env=env)


def _in_cache(workspace: Workspace) -> set[str]:
    """The sha256 of every object in DVC's cache."""
    return {
        files.sha256_file(path)
        for path in (workspace.root / ".dvc/cache/files").rglob("*")
        if path.is_file()
    }


def _weights(workspace: Workspace, name: str) -> set[str]:
    """The sha256 of a checkpoint's weights, as its record names them."""
    training = TrainingRun.read(_train_dir(workspace))
    found = next(c for c in training.checkpoints if c.name == name)
    return {sha256 for path, sha256 in found.files.items() if path.endswith(".safetensors")}


def _is_up_to_date(workspace: Workspace) -> bool:
    status = json.loads(dvc(workspace.root, "status", "--json").stdout)
    return status == {} and "Running stage" not in dvc(workspace.root, "repro").stdout


def test_output_and_cache_keep_the_selected_weights_alone(workspace: Workspace) -> None:
    best = _selected(workspace)
    (other,) = {*NAMES} - {best}
    assert [p.name for p in sorted(_train_dir(workspace).glob("checkpoint-*"))] == [best]
    assert [c.name for c in TrainingRun.read(_train_dir(workspace)).checkpoints] == [*NAMES]
    cached = _in_cache(workspace)
    assert _weights(workspace, best) <= cached
    assert not _weights(workspace, other) & cached
    assert _is_up_to_date(workspace)


def test_every_checkpoint_can_be_scored_again(workspace: Workspace) -> None:
    before = files.tree_hashes(workspace.stage_dir(SUBJECT, "evaluate"))
    shutil.rmtree(workspace.state / "evaluate")
    _stage(workspace, "evaluate")
    assert files.tree_hashes(workspace.stage_dir(SUBJECT, "evaluate")) == before
    assert _is_up_to_date(workspace)


def test_kill_before_the_commit_is_repaired_by_the_next_run(workspace: Workspace) -> None:
    _stage(workspace, "train")  # publishes every checkpoint again, from the store
    assert {p.name for p in _train_dir(workspace).glob("checkpoint-*")} == {*NAMES}
    dvc(workspace.root, "commit", "--force", f"train@{SUBJECT}", f"evaluate@{SUBJECT}")
    retention.keep_selected(_context(workspace))  # the process ends here, without a commit
    _run(workspace)
    test_output_and_cache_keep_the_selected_weights_alone(workspace)


def test_without_the_store_one_command_trains_the_same_bytes_again(workspace: Workspace) -> None:
    record = files.sha256_file(_train_dir(workspace) / "record.json")
    shutil.rmtree(workspace.state / "train")
    scores = workspace.state / "evaluate"
    scores.rename(workspace.root / "scores-aside")
    text = _stage(workspace, "evaluate", check=False)
    assert "are not on this machine" in text
    assert f"`dvc repro --force --single-item train@{SUBJECT}`" in text
    dvc(workspace.root, "repro", "--force", "--single-item", f"train@{SUBJECT}")
    assert files.sha256_file(_train_dir(workspace) / "record.json") == record
    shutil.rmtree(scores)
    (workspace.root / "scores-aside").rename(scores)
    _run(workspace)
    test_output_and_cache_keep_the_selected_weights_alone(workspace)


def test_objects_that_a_commit_names_stay_in_the_cache(workspace: Workspace) -> None:
    change(workspace.root, "runtime.keep_checkpoints", "all")
    change(workspace.root, "train.learning_rate", 1.0e-4)
    _run(workspace)
    assert {p.name for p in _train_dir(workspace).glob("checkpoint-*")} == {*NAMES}
    run_in(workspace.root, "git", "add", "--force", "dvc.lock")
    author = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    run_in(workspace.root, "git", *author, "commit", "--quiet", "-m", "all")

    change(workspace.root, "runtime.keep_checkpoints", "selected")
    _run(workspace)
    best = _selected(workspace)
    assert [p.name for p in _train_dir(workspace).glob("checkpoint-*")] == [best]
    assert all(_weights(workspace, name) <= _in_cache(workspace) for name in NAMES)
    assert _is_up_to_date(workspace)


def test_replaced_training_leaves_the_store_and_an_unfinished_one_stays(
    workspace: Workspace,
) -> None:
    stored = {path.name for path in (workspace.state / "train").iterdir()}
    assert stored == {TrainingRun.read(_train_dir(workspace)).fingerprint}
    (present,) = (workspace.state / "train").iterdir()
    finished, unfinished = present.with_name("a" * 64), present.with_name("b" * 64)
    shutil.copytree(present, finished)
    shutil.copytree(present, unfinished, ignore=shutil.ignore_patterns("out"))
    retention.remove_replaced(_context(workspace))
    assert {*present.parent.iterdir()} == {present, unfinished}
