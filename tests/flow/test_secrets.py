"""A password in MLFLOW_TRACKING_URI is found nowhere after a run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.supervision import free_port
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.service, pytest.mark.timeout(900)]

SECRET = "pl4nted-p4ssw0rd"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An MLflow server that takes the files itself; the address has a password."""
    home, port = tmp_path / "server", free_port()
    home.mkdir()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--workers", "1"),
        *("--artifacts-destination", str(home / "artifacts")),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield f"http://ada:{SECRET}@127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def test_planted_password_is_found_nowhere_after_a_run(tmp_path: Path, server: str) -> None:
    workspace = workspaces.build(tmp_path / "checkout")
    environment = {**workspaces.environment(workspace.root), "MLFLOW_TRACKING_URI": server}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "run", SUBJECT, "--json"],
        cwd=workspace.root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "http://ada:***@127.0.0.1" in done.stdout
    assert SECRET not in done.stdout + done.stderr
    found = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert b"train-subject" in (workspace.root / ".prefect" / "prefect.db").read_bytes()
    assert {path.name for path in found} >= {"prefect.db", "mlflow.db", "job.json", "train.log"}
    assert [path for path in found if SECRET.encode() in path.read_bytes()] == []
