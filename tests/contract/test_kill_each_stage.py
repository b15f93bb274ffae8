"""Kills all processes in the middle of each stage: the next run repeats no finished work."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dreambooth_core import files
from dreambooth_core.workspace import STAGES, Workspace
from tests.flow import workspaces

SUBJECT = workspaces.SUBJECT
STEPS, EVERY = 8, 2
TRIGGERS = {
    "validate": ".state/validate/*/*.png",
    "class-images": ".state/class-images/*/00000/lock",
    "cache": ".state/cache/**/*.safetensors",
    "train": ".state/train/*/resume/*/*",
    "evaluate": ".state/evaluate/images/*/*/block/record.json",
    "register": ".state/upload/*/*",
}
"""Files in the store that show that a stage is in the middle of its work."""


def _build(root: Path) -> Workspace:
    workspace = workspaces.build(root)
    workspaces.change(root, "train.max_train_steps", STEPS)
    workspaces.change(root, "train.checkpointing_steps", EVERY)
    workspaces.change(root, "prior.num_class_images", 8)
    return workspace


def _command(stage: str) -> list[str]:
    return [sys.executable, "-m", "dreambooth_core", stage, "--subject", SUBJECT]


def _kill_in_the_middle(workspace: Workspace, stage: str) -> bool:
    """Start a stage and kill its process tree at work; return False if it ended first."""
    process = subprocess.Popen(
        _command(stage),
        cwd=workspace.root,
        env=workspaces.environment(workspace.root),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not any(workspace.root.glob(TRIGGERS[stage])):
        time.sleep(0.005)
    alive = process.poll() is None
    if alive:
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for member in family:
            member.kill()
        psutil.wait_procs([p for p in family if isinstance(p, psutil.Process)], timeout=10)
    process.wait()
    return alive


def _run(workspace: Workspace, stage: str) -> None:
    workspaces.run_in(workspace.root, *_command(stage))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = _build(tmp_path_factory.mktemp("undisturbed"))
    for stage in STAGES[:-1]:
        _run(workspace, stage)
    return workspace


# A hang guard, not a claim: two runs of every stage take five minutes on a busy machine.
@pytest.mark.timeout(900)
def test_kill_in_every_stage_changes_no_byte_and_repeats_no_work(
    undisturbed: Workspace, tmp_path: Path
) -> None:
    killed = _build(tmp_path / "killed")
    kills = {stage: _kill_and_rerun(killed, stage) for stage in STAGES[:-1]}

    assert files.tree_hashes(killed.places(SUBJECT).outputs) == files.tree_hashes(
        undisturbed.places(SUBJECT).outputs
    )
    assert kills["class-images"]
    assert kills["train"]
    assert kills["evaluate"]
    assert _leftovers(killed) == []


def _kill_and_rerun(workspace: Workspace, stage: str) -> bool:
    was_killed = stage in TRIGGERS and _kill_in_the_middle(workspace, stage)
    finished, saved = _finished_blocks(workspace), _saved_step(workspace)
    _run(workspace, stage)
    assert finished.items() <= _finished_blocks(workspace).items()  # none was sampled again
    if stage == "train" and was_killed:
        log = workspace.places(SUBJECT).log_file("train").read_text()
        assert re.findall(r"training starts after step (\d+)", log) == ["0", str(saved)]
    return was_killed


def _finished_blocks(workspace: Workspace) -> dict[Path, int]:
    """When each finished block of sampled images was written."""
    return {p: p.stat().st_mtime_ns for p in workspace.state.rglob("block/record.json")}


def _saved_step(workspace: Workspace) -> int:
    """The step of the newest complete resume state, 0 if there is none."""
    states = workspace.root.glob(".state/train/*/resume/step-*")
    return max((int(state.name.removeprefix("step-")) for state in states), default=0)


def _leftovers(workspace: Workspace) -> list[str]:
    """Processes still running in the workspace, and temporary folders next to its outputs."""
    root = str(workspace.root)
    processes = [
        " ".join(p.info["cmdline"])
        for p in psutil.process_iter(["cmdline", "cwd"])
        if p.info["cwd"] == root and p.pid != psutil.Process().pid
    ]
    halves = [str(p) for p in workspace.places(SUBJECT).outputs.iterdir() if files.is_aside(p.name)]
    return processes + halves
