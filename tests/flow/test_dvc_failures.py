"""When DVC fails, the error says why, in DVC's words and without its advertisement."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.errors import StageError
from dreambooth_core.workspace import Workspace
from tasks.dvc import Busy, Dvc
from tests.flow import workspaces

LOCKED = """
import sys
from dvc.repo import Repo
with Repo(".").lock:
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def dvc(tmp_path: Path) -> Dvc:
    """DVC in a repository with one file."""
    workspaces.run_in(tmp_path, "git", "init", "--quiet")
    workspaces.dvc(tmp_path, "init", "--quiet")
    (tmp_path / "photo.png").write_bytes(b"photo")
    return Dvc(Workspace(tmp_path), env=workspaces.environment(tmp_path))


def test_missing_remote_is_the_reason_of_a_failed_push(dvc: Dvc) -> None:
    dvc.add_unlocked("photo.png")
    with pytest.raises(StageError) as caught:
        dvc.push()
    assert caught.value.what == "`dvc push` failed"
    got = caught.value.got or ""
    assert got.startswith("failed to push data to the cloud - config file error: no remote")
    assert "troubles" not in got


def test_commit_says_that_another_process_of_dvc_works(dvc: Dvc, tmp_path: Path) -> None:
    dvc.add_unlocked("photo.png")
    other = subprocess.Popen(
        [sys.executable, "-c", LOCKED],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    try:
        with pytest.raises(Busy, match="another DVC process is at work"):
            dvc.commit("photo.png.dvc")
    finally:
        other.communicate()
    dvc.commit("photo.png.dvc")


def test_files_that_are_nowhere_name_what_was_tried(dvc: Dvc, tmp_path: Path) -> None:
    dvc.add_unlocked("photo.png")
    (tmp_path / "photo.png").unlink()
    for file in (tmp_path / ".dvc" / "cache").rglob("*"):
        file.chmod(0o700)
        if file.is_file():
            file.unlink()
    with pytest.raises(StageError) as caught:
        dvc.fetch("photo.png.dvc")
    assert caught.value.what == "`dvc pull photo.png.dvc` failed"
    assert "No remote provided" in (caught.value.got or "")
