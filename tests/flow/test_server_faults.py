"""The Prefect server of a run is killed while the run trains."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli import doctor
from cli.server import answers
from cli.stuck_runs import tags_of_process
from dreambooth_core.supervision import free_port
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1200)]

IN_TRAINING = r"  train \d+/"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    built = workspaces.build(tmp_path_factory.mktemp("faults") / "checkout")
    workspaces.change(built.root, "train.max_train_steps", 100)
    workspaces.change(built.root, "train.checkpointing_steps", 50)
    return built


@contextlib.contextmanager
def started(workspace: Workspace, log: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "run", SUBJECT],
            cwd=workspace.root,
            env={**workspaces.environment(workspace.root), **more},
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(120)


def wait_for_training(process: subprocess.Popen[bytes], log: Path) -> None:
    while not re.search(IN_TRAINING, log.read_text(errors="replace")):
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        time.sleep(0.05)


@contextlib.contextmanager
def own_server(workspace: Workspace) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A Prefect server that the user started, and the URL of its API."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    server = subprocess.Popen(
        command,
        cwd=workspace.root,
        env=workspaces.environment(workspace.root),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not answers(f"{api}/health"):
            assert server.poll() is None
            time.sleep(0.5)
        yield server, api
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


def _is_trained(log: Path) -> bool:
    return bool(re.search(r"^train +done", log.read_text(errors="replace"), re.MULTILINE))


def test_run_ends_soon_with_a_sentence_if_the_users_server_is_gone(
    workspace: Workspace, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with (
        own_server(workspace) as (server, api),
        started(workspace, log, PREFECT_API_URL=api) as process,
    ):
        wait_for_training(process, log)
        os.killpg(server.pid, signal.SIGKILL)
        while process.poll() is None and not _is_trained(log):
            time.sleep(0.1)
        assert _is_trained(log), log.read_text(errors="replace")[-2000:]
        began = time.monotonic()
        assert process.wait(120) == 1
        assert time.monotonic() - began < 60
    printed = log.read_text()
    assert f"error: Prefect at {api} no longer answers; finished work is kept" in printed
    assert "Traceback" not in printed


def test_doctor_names_a_run_that_no_process_works_on(workspace: Workspace) -> None:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.states import Running

    from flows.train_subject import train_subject

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with own_server(workspace) as (_, api):
        with SyncPrefectClient(api) as client:
            runs = [
                client.create_flow_run(
                    train_subject,
                    parameters={"subject": SUBJECT},
                    tags=tags_of_process(process),
                    state=Running(),
                )
                for process in (os.getpid(), ended.pid)
            ]
        env = {**workspaces.environment(workspace.root), "PREFECT_API_URL": api}
        found = [c for c in doctor.examine(workspace, env) if c["what"] == "Prefect runs"]
    (check,) = found
    assert check["found"].startswith("no process works on ")
    assert runs[1].name in check["found"]  # next to the run whose server an earlier test has ended
    assert runs[0].name not in check["found"]
    assert f"prefect flow-run delete {runs[1].id}" in check["hint"]


def test_run_goes_on_if_its_own_server_is_killed(workspace: Workspace, tmp_path: Path) -> None:
    workspaces.change(workspace.root, "train.learning_rate", 1e-4)
    log = tmp_path / "log"
    with started(workspace, log) as process:
        wait_for_training(process, log)
        (server,) = [
            child
            for child in psutil.Process(process.pid).children()
            if "prefect.server" in " ".join(child.cmdline())
        ]
        server.kill()
        assert process.wait(600) == 0, log.read_text()[-3000:]
    assert "Traceback" not in log.read_text()
