"""A small disk fills up in each stage: a sentence, then the same command ends with equal bytes."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core import files
from dreambooth_core.workspace import STAGES, Workspace
from tests.flow import workspaces

SUBJECT = workspaces.SUBJECT
SIZE = "700m"
WHEN_FILE = {
    "validate": ".state/validate/*/*.png",
    "class-images": ".state/class-images/*/00000/lock",
    "cache": ".state/cache/**/*.safetensors",
    "train": ".state/train/*/resume/*/*",
    "register": ".state/upload/*/*",
}
"""Files that show that a stage is in the middle of its work."""
AFTER_STAGE = {
    "evaluate": "train",
    "select": "evaluate",
    "confirm": "select",
    "compare": "register",
    "report": "compare",
}
"""Stages that are in their work when the stage before them is done."""
ORDER = (*STAGES[:-1], "compare", "report")
LARGE = {"class-images", "train", "register"}
"""Stages that write for so long that the full disk certainly hits them."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def build(root: Path) -> Workspace:
    workspace = workspaces.build(root)
    workspaces.change(root, "train.max_train_steps", 8)
    return workspace


def fill(disk: Path) -> Path:
    """Write until nothing more fits."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(b"\0" * size)
    return ballast


def is_working(workspace: Workspace, stage: str, before: set[Path], log: Path) -> bool:
    if stage in WHEN_FILE:
        return bool(set(workspace.root.glob(WHEN_FILE[stage])) - before)
    printed = log.read_text(errors="replace")
    return re.search(rf"^{AFTER_STAGE[stage]} +done", printed, re.MULTILINE) is not None


def run_on_a_disk_that_fills_up(workspace: Workspace, stage: str, log: Path) -> tuple[int, str]:
    """Run, and fill the disk once the stage works; the exit status, and what was printed."""
    before = set(workspace.root.glob(WHEN_FILE[stage])) if stage in WHEN_FILE else set()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "run", SUBJECT],
            cwd=workspace.root,
            env=workspaces.environment(workspace.root),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    while process.poll() is None and not is_working(workspace, stage, before, log):
        time.sleep(0.005)
    ballast = fill(workspace.root.parent)
    try:
        return process.wait(300), log.read_text(errors="replace")
    finally:
        ballast.unlink()


def published(workspace: Workspace) -> dict[str, str]:
    """The hashes of what stages publish, without the page, which has dates."""
    hashes = files.tree_hashes(workspace.root / "work" / SUBJECT)
    return {name: value for name, value in hashes.items() if not name.startswith("report/")}


def test_full_disk_in_each_stage_loses_nothing(disk: Path, tmp_path: Path) -> None:
    undisturbed = build(tmp_path / "undisturbed")
    assert workspaces.call(undisturbed.root, "run", SUBJECT).returncode == 0
    workspace = build(disk / "workspace")
    hit = set[str]()
    for stage in ORDER:
        code, printed = run_on_a_disk_that_fills_up(workspace, stage, tmp_path / f"{stage}.log")
        assert "Traceback" not in printed, printed
        if code != 0:
            assert re.search("the disk is (full: |too small for this run)", printed), printed
            assert re.search(f" free (on|at) {disk}", printed), printed
            hit.add(stage)
    assert hit >= LARGE
    done = workspaces.call(workspace.root, "run", SUBJECT)
    assert done.returncode == 0, done.stderr
    assert published(workspace) == published(undisturbed)
