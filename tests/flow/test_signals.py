"""Ctrl-C and SIGTERM stop `dreambooth run`: it saves, ends all processes, and resumes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS = 300
IN_TRAINING, IN_EVALUATION = r"  train \d+/300", r"  score \S.* \d+/"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One workspace; each test stops the run later than the test before."""
    built = workspaces.build(tmp_path_factory.mktemp("signals") / "checkout")
    workspaces.change(built.root, "train.max_train_steps", STEPS)
    workspaces.change(built.root, "train.checkpointing_steps", STEPS // 2)
    workspaces.change(built.root, "evaluate.num_inference_steps", 20)
    return built


@pytest.fixture(scope="module")
def starts() -> list[int]:
    """The steps after which the training must start: 0, then the step saved at each stop."""
    return [0]


def _start(workspace: Workspace, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", "cli", "run", SUBJECT],
            cwd=workspace.root,
            env=workspaces.environment(workspace.root),
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )


def _await(pattern: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while not re.search(pattern, log.read_text(errors="replace")):
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        time.sleep(0.05)


def _saved_step(workspace: Workspace) -> int:
    ended = [json.loads(p.read_text()) for p in workspace.state.glob("train/*/ended.json")]
    assert [e["how"] for e in ended] == ["stopped"]
    return ended[0]["step"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_stopped_during_training_saves_and_ends_within_10_s(
    workspace: Workspace, tmp_path: Path, number: signal.Signals, starts: list[int]
) -> None:
    log = tmp_path / "log"
    process = _start(workspace, log)
    _await(IN_TRAINING, process, log)
    _stop_and_check(workspace, process, log, number)
    starts.append(_saved_step(workspace))
    assert starts[-2] < starts[-1] < STEPS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_stopped_during_evaluation_ends_within_10_s(
    workspace: Workspace, tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "log"
    process = _start(workspace, log)
    _await(IN_EVALUATION, process, log)
    _stop_and_check(workspace, process, log, number)


def _stop_and_check(
    workspace: Workspace, process: subprocess.Popen[bytes], log: Path, number: signal.Signals
) -> None:
    start = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # what a terminal does
    else:
        process.send_signal(number)
    assert process.wait(60) == 1
    assert time.monotonic() - start < 10
    assert workspaces.processes_in(workspace.root) == []
    assert log.read_text().rstrip().endswith("run the same command again to continue")


def test_stopped_run_completes_without_repeating_a_step(
    workspace: Workspace, tmp_path: Path, starts: list[int]
) -> None:
    log = tmp_path / "log"
    assert _start(workspace, log).wait(600) == 0, log.read_text()[-2000:]
    training = workspace.places(SUBJECT).log_file("train").read_text()
    assert [int(n) for n in re.findall(r"training starts after step (\d+)", training)] == starts
