"""`dreambooth clean` and `dreambooth metrics` state the space on disk by its use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli import disk_usage
from dreambooth_core.workspace import Workspace

KIB = 1024


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Files of known sizes at the places of outputs, store, cache, remote and registry."""
    sizes = {
        "work/mug/evaluate/grid.png": 40,
        ".state/class-images/1f2c/image.png": 80,
        ".state/train/9a8b/resume/step-2/model.safetensors": 160,
        ".dvc/cache/files/md5/00/1": 320,
        "remote/files/md5/00/1": 640,
        "mlartifacts/1/model.safetensors": 1280,
    }
    for name, kib in sizes.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(kib * KIB))
    (tmp_path / ".dvc" / "config").write_text("['remote \"nas\"']\n    url = ../remote\n")
    return Workspace(tmp_path)


def usage(workspace: Workspace) -> dict[str, float]:
    """KiB by line, without the folders' own blocks."""
    lines = {line.what: line.num_bytes / KIB for line in disk_usage.usage_of(workspace)}
    return {what: size for what, size in lines.items() if size >= 40}


def test_each_use_has_its_own_line_and_size(workspace: Workspace) -> None:
    found = usage(workspace)
    assert {what: size // 40 * 40 for what, size in found.items()} == {
        "work/mug": 40,
        ".state: training of ? (9a8b)": 160,
        ".state: class images": 80,
        "DVC's cache": 320,
        "DVC's remote nas": 640,
        "MLflow's versions and runs": 1280,
    }
    assert all(size % 40 <= 36 for size in found.values()), "more than the folders' own blocks"


def test_hard_link_counts_once(workspace: Workspace) -> None:
    before = usage(workspace)
    state = workspace.state / "train" / "9a8b" / "resume" / "step-2" / "model.safetensors"
    published = workspace.root / "work" / "mug" / "train" / "model.safetensors"
    published.parent.mkdir()
    os.link(state, published)
    after = usage(workspace)
    assert sum(after.values()) - sum(before.values()) <= 8
    assert after["work/mug"] - before["work/mug"] >= 160


def test_unfinished_training_says_how_it_is_freed(workspace: Workspace) -> None:
    (line,) = [each for each in disk_usage.usage_of(workspace) if "training" in each.what]
    assert line.why == "it has not finished, and resumes with the same settings"
    assert "dreambooth clean" in line.freed_by
