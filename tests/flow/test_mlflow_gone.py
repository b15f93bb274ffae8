"""An MLflow server that is gone for a while at each of its uses, and then answers again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cli.server import answers
from dreambooth_core.supervision import free_port
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1800)]

GONE_S, LONG_S = 20.0, 120.0
GONE_LONG = ("training", "register")
STEPS = 40
MODEL = f"name = 'dreambooth-{SUBJECT}'"
USES = {
    "start of the training": r"^cache +done",
    "training": r"^  train \d+/",
    "register": r"^confirm +done",
    "compare": r"^register +done",
    "report": r"^compare +done",
}
"""What the command has printed when the use begins."""


@dataclass
class Server:
    """An MLflow server that can be killed and started again."""

    home: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
            *("--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self.home / 'served.db'}"),
            *("--artifacts-destination", str(self.home / "artifacts")),
        ]
        self.process = subprocess.Popen(
            command,
            cwd=self.home,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not answers(f"{self.uri}/health"):
            assert self.process.poll() is None
            time.sleep(0.5)

    def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"), free_port())
    started.start()
    yield started
    started.kill()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    built = workspaces.build(tmp_path_factory.mktemp("outages") / "checkout")
    workspaces.change(built.root, "train.max_train_steps", STEPS)
    workspaces.change(built.root, "train.checkpointing_steps", STEPS // 2)
    workspaces.change(built.root, "select.early_stopping_patience", None)
    return built


@pytest.mark.parametrize("use", USES)
def test_run_waits_for_a_server_that_is_gone_for_a_while(
    workspace: Workspace, server: Server, tmp_path: Path, use: str
) -> None:
    client = MlflowClient(server.uri)
    before = len(client.search_model_versions(MODEL))
    workspaces.change(workspace.root, "train.seed", list(USES).index(use))
    log = tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "run", SUBJECT],
            cwd=workspace.root,
            env={**workspaces.environment(workspace.root), "MLFLOW_TRACKING_URI": server.uri},
            stdout=sink,
            stderr=sink,
        )
    while not re.search(USES[use], log.read_text(errors="replace"), re.MULTILINE):
        assert process.poll() is None, log.read_text(errors="replace")
        time.sleep(0.02)
    server.kill()
    time.sleep(LONG_S if use in GONE_LONG else GONE_S)
    server.start()
    code, printed = process.wait(600), log.read_text(errors="replace")
    assert code == 0, printed
    assert "Traceback" not in printed
    assert "Retrying (" not in printed
    assert printed.count("does not answer") <= 1
    versions = client.search_model_versions(MODEL)
    assert len(versions) == before + 1
    newest = max(versions, key=lambda each: int(each.version))
    assert newest.run_id
    run = client.get_run(newest.run_id)
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(newest.run_id, "loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
