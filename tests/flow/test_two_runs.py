"""Two runs of one subject: the second waits, says for whom, and outlives a killed owner."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1800)]


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
