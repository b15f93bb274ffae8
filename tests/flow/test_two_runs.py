"""Runs at the same time: two of one subject, and eight of eight subjects."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_core import config, files
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(3600)]

EIGHT = tuple(f"subject-{letter}" for letter in "abcdefgh")


def start(workspace: Workspace, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `dreambooth run`."""
    with log.open("wb") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", "cli", "run", *arguments],
            cwd=workspace.root,
            env=workspaces.environment(workspace.root),
            stdout=sink,
            stderr=sink,
        )


def wait_for_text(process: subprocess.Popen[bytes], log: Path, pattern: str) -> re.Match[str]:
    """Wait until a process has printed what the pattern describes."""
    while not (found := re.search(pattern, log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    return found


def test_second_run_names_the_first_and_starts_once_that_is_killed(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path / "checkout")
    workspaces.change(workspace.root, "train.max_train_steps", 20_000)
    first = start(workspace, tmp_path / "first", SUBJECT)
    training = workspace.places(SUBJECT).log_file("train")
    while not (training.is_file() and "training starts" in training.read_text()):
        assert first.poll() is None, (tmp_path / "first").read_text()
        time.sleep(0.1)
    second = start(workspace, tmp_path / "second", SUBJECT, "--stage", "validate")
    wait_for_text(
        second,
        tmp_path / "second",
        rf"waiting for process {first.pid} "
        rf"\(run train-subject {SUBJECT}, [0-9a-f-]{{36}}, since [0-9: -]{{19}}\), "
        rf"which works on {SUBJECT}",
    )
    time.sleep(1)
    assert second.poll() is None
    first.kill()
    first.wait()
    assert second.wait(120) == 0, (tmp_path / "second").read_text()
    assert workspace.stage_dir(SUBJECT, "validate").is_dir()


def test_eight_subjects_at_once_end_with_the_bytes_of_one_by_one(tmp_path: Path) -> None:
    in_turn, at_once = (
        workspaces.build(tmp_path / name, subjects=EIGHT) for name in ("in-turn", "at-once")
    )
    logs = {subject: tmp_path / f"{subject}.log" for subject in EIGHT}
    runs = {
        subject: start(at_once, log, subject, "--stage", "evaluate")
        for subject, log in logs.items()
    }
    for subject, process in runs.items():
        assert process.wait() == 0, logs[subject].read_text()
    log = tmp_path / "in-turn.log"
    assert start(in_turn, log, "--all", "--stage", "evaluate").wait() == 0, log.read_text()
    outputs = [files.tree_hashes(workspace.root / "work") for workspace in (at_once, in_turn)]
    assert outputs[0] == outputs[1]
    locks = [(workspace.root / "dvc.lock").read_text() for workspace in (at_once, in_turn)]
    assert config.parse_yaml(locks[0]) == config.parse_yaml(locks[1])
