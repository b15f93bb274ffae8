"""The disk fills during a run: one sentence, nothing lost, and the same bytes in the end."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core import files
from dreambooth_core.workspace import STAGES, Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(3600)]

FIRST_KIB, STEP_KIB = 600, 1400


class SmallDisk:
    """A file system in memory, of a size that can grow."""

    def __init__(self, folder: Path, kib: int) -> None:
        self.folder, self.kib = folder, kib
        folder.mkdir()
        self._mount("mount", f"size={kib}k")

    def grow(self, kib: int) -> None:
        self.kib += kib
        self._mount("mount", f"remount,size={self.kib}k")

    def remove(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)

    def _mount(self, command: str, options: str) -> None:
        words = [command, "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        made = SmallDisk(tmp_path / "disk", 10 * 1024)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs root")
    yield made
    made.remove()


def run(root: Path, home: Path) -> tuple[int, str]:
    env = {
        **workspaces.environment(root),
        "PREFECT_HOME": str(home),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
    }
    done = subprocess.run(
        [sys.executable, "-m", "cli", "run", SUBJECT],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def hashes(workspace: Workspace) -> dict[str, dict[str, str]]:
    """The output of each stage up to the confirmation."""
    stages = STAGES[: STAGES.index("confirm") + 1]
    return {stage: files.tree_hashes(workspace.stage_dir(SUBJECT, stage)) for stage in stages}


def test_full_disk_in_every_stage_costs_a_sentence_and_no_byte(
    tmp_path: Path, disk: SmallDisk
) -> None:
    plain = workspaces.build(tmp_path / "plain")
    root = disk.folder / "checkout"
    shutil.copytree(plain.root, root, symlinks=True)
    assert run(plain.root, tmp_path / "plain-home")[0] == 0
    disk.grow(FIRST_KIB - shutil.disk_usage(disk.folder).free // 1024)
    stopped: list[str] = []
    for _ in range(30):
        code, printed = run(root, tmp_path / "home")
        if code == 0:
            break
        (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert "the disk is full: " in error or "the disk is too small for this run" in error
        assert str(disk.folder) in error
        assert "Traceback" not in printed
        stopped.append(error)
        disk.grow(STEP_KIB)
    assert code == 0
    assert len(stopped) >= 3, stopped
    assert hashes(Workspace(root)) == hashes(plain)
    assert [path for path in root.iterdir() if files.is_aside(path.name)] == []
