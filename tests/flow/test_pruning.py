"""`dreambooth clean` removes old entries from the store and keeps those in use."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from cli.pruning import prune
from dreambooth_core import files
from dreambooth_core.errors import StageError
from dreambooth_core.locks import hold
from dreambooth_core.workspace import Workspace
from tests.flow.workspaces import REPOSITORY

USED, UNUSED = "a" * 64, "b" * 64


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A store with entries of 400 days; published records reference half of them."""
    workspace = Workspace(tmp_path)
    shutil.copy(REPOSITORY / "params.yaml", workspace.params)
    for digest in (USED, UNUSED):
        for group in ("train", "class-images"):
            files.write_text(workspace.state / group / digest / "record.json", "{}")
        files.write_text(workspace.state / "cache" / digest[:2] / f"{digest}.safetensors", "x")
        files.write_text(workspace.state / "evaluate" / "scores" / digest / "record.json", "{}")
    published = workspace.stage_dir("mug", "train") / "record.json"
    files.write_text(published, f'{{"fingerprint": "{USED}"}}')
    _age(workspace.state, days=400)
    return workspace


def _age(root: Path, *, days: float) -> None:
    then = time.time() - days * 86400
    for path in (root, *root.rglob("*")):
        os.utime(path, (then, then))


def _left(workspace: Workspace) -> set[str]:
    return {p.name.partition(".")[0] for g in ("train", "class-images", "cache/??")
            for p in workspace.state.glob(f"{g}/*")}  # fmt: skip


def test_old_entries_are_removed_unless_an_output_came_from_them(workspace: Workspace) -> None:
    removed = {entry["path"] for entry in prune(workspace, dry_run=False)["removed"]}
    assert removed == {
        *(f".state/{group}/{UNUSED}" for group in ("train", "class-images")),
        f".state/cache/{UNUSED[:2]}/{UNUSED}.safetensors",
    }
    assert _left(workspace) == {USED}


def test_scores_are_never_removed(workspace: Workspace) -> None:
    prune(workspace, dry_run=False)
    assert len(list((workspace.state / "evaluate" / "scores").iterdir())) == 2


def test_dry_run_lists_the_same_entries_and_removes_none(workspace: Workspace) -> None:
    dry = prune(workspace, dry_run=True)
    assert _left(workspace) == {USED, UNUSED}
    assert prune(workspace, dry_run=False)["removed"] == dry["removed"]


def test_young_entries_are_kept(workspace: Workspace) -> None:
    _age(workspace.state, days=0)
    assert prune(workspace, dry_run=False)["removed"] == []


def test_nothing_is_removed_while_a_run_locks_a_subject(workspace: Workspace) -> None:
    with (
        hold(workspace.subject_lock("mug"), timeout_s=1),
        pytest.raises(StageError, match=r"subject-mug\.lock is held"),
    ):
        prune(workspace, dry_run=False)
    assert _left(workspace) == {USED, UNUSED}
