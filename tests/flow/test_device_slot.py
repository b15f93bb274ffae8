"""The accelerator's slot: one holder at a time, free after a kill, no effect without a server."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_core.workspace import Workspace
from tasks.device_slot import LIMIT, device_slot
from tests.flow import workspaces
from tests.flow.running_up import Up, running, wait_for

_HOLDER = """
import os, sys, time
from pathlib import Path
from dreambooth_core.workspace import Workspace
from tasks.device_slot import device_slot
with device_slot(Workspace(Path.cwd()), os.environ, device=sys.argv[1]):
    print("holds", flush=True)
    time.sleep(float(sys.argv[2]))
"""


class Holder:
    """A process that holds the slot for some seconds."""

    def __init__(self, up: Up, log: Path, *, seconds: float, device: str = "auto") -> None:
        self._log = log
        env = {**workspaces.environment(up.workspace.root), "PREFECT_API_URL": up.api}
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _HOLDER, device, str(seconds)],
                cwd=up.workspace.root, env=env, stdout=sink, stderr=sink,
            )  # fmt: skip

    def text(self) -> str:
        return self._log.read_text()

    def holds(self) -> bool:
        assert self.process.poll() in (None, 0), self.text()
        return "holds" in self.text()


def test_work_without_a_server_starts_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with device_slot(Workspace(tmp_path), {}, device="cuda"):
        pass
    assert time.monotonic() - start < 10


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.timeout(1200)
def test_second_waits_and_gets_the_slot_of_a_killed_holder(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path / "checkout")
    with running(workspace, tmp_path / "log", deploy=False) as up:
        with up.client() as client:
            assert client.read_global_concurrency_limit_by_name(LIMIT).limit == 1
        first = Holder(up, tmp_path / "first", seconds=900)
        wait_for(first.holds)
        second = Holder(up, tmp_path / "second", seconds=0)
        wait_for(lambda: "waiting for the accelerator" in second.text())
        on_cpu = Holder(up, tmp_path / "cpu", seconds=0, device="cpu")
        assert on_cpu.process.wait(120) == 0
        assert not second.holds()
        first.process.kill()
        first.process.wait()
        killed = time.monotonic()
        wait_for(second.holds, timeout_s=200)
        assert second.process.wait(120) == 0
        assert time.monotonic() - killed < 200
        up.prefect("gcl", "update", LIMIT, "--limit", "2")
    with running(workspace, tmp_path / "again", deploy=False) as up, up.client() as client:
        assert client.read_global_concurrency_limit_by_name(LIMIT).limit == 2


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.timeout(1800)
def test_two_sweep_workers_train_in_turn(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path / "checkout")
    workspaces.change(workspace.root, "compute.device", "auto")
    command = [sys.executable, "-m", "cli", "sweep", "mug", "--trials", "3"]
    command += ["--param", "prior.prior_loss_weight=1", "--param", "train.max_train_steps=4"]
    logs, at_once, trained = [tmp_path / "first", tmp_path / "second"], 0, set[str]()
    with running(workspace, tmp_path / "log", deploy=False) as up:
        env = {**workspaces.environment(workspace.root), "PREFECT_API_URL": up.api}
        workers = list[subprocess.Popen[bytes]]()
        for log in logs:
            with log.open("wb") as sink:
                workers.append(
                    subprocess.Popen(command, cwd=workspace.root, env=env, stdout=sink, stderr=sink)
                )
        while any(worker.poll() is None for worker in workers):
            jobs = up.trainings()
            at_once, trained = max(at_once, len(jobs)), trained | jobs
            time.sleep(0.1)
    texts = [log.read_text() for log in logs]
    assert [worker.returncode for worker in workers] == [0, 0], texts
    assert any("waiting for the accelerator" in text for text in texts)
    assert len(trained) >= 3
    assert at_once == 1
