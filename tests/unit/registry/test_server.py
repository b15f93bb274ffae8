"""The same promises against an MLflow server over HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from dreambooth_core import files
from dreambooth_core.errors import RegistryError
from dreambooth_core.registry import aliases, logged_models, runs, sink, store_opening, versions
from dreambooth_core.registry.aliases import PARITY, PARITY_PASSED, Decision
from dreambooth_core.registry.tracking import Tracking, resolve_tracking
from dreambooth_core.workspace import Workspace
from tests.unit.registry import examples
from tests.unit.registry.examples import MODEL

pytestmark = [pytest.mark.service, pytest.mark.timeout(600)]

START_TIMEOUT_S = 240


def answers(tracking: Tracking) -> bool:
    try:
        store_opening.reach(tracking.uri)
    except RegistryError:
        return False
    return True


@pytest.fixture
def served(tmp_path: Path, empty_store: Path) -> Iterator[Tracking]:
    """An MLflow server on loopback with a store of its own."""
    home = tmp_path / "server"
    home.mkdir()
    files.write_bytes(home / "mlflow.db", empty_store.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--workers", "1"),
        *("--artifacts-destination", str(home / "artifacts")),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        command, cwd=home, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    tracking = resolve_tracking(Workspace(tmp_path), uri=f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(tracking):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield tracking
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_server_stores_run_scores_version_and_alias(
    served: Tracking, tiny_sd: Path, tmp_path: Path
) -> None:
    run = runs.find_or_create_run(served, experiment=MODEL, fingerprint="a" * 64, name="x")
    for _ in range(2):
        logged_models.record_scores(
            served, run, checkpoints=[examples.checkpoint(100)], scores=examples.scores(100)
        )
        first = versions.register_version(
            served, run, examples.candidate(tiny_sd), scratch=tmp_path / "scratch"
        )
        assert first.version == 1
    aliases.set_tags(served, name=MODEL, version=1, tags={PARITY: PARITY_PASSED})
    why = Decision(who="ada", when="now", why="first")
    aliases.promote(served, name=MODEL, version=1, decision=why, expected=None)
    assert versions.aliases_of(served, name=MODEL) == {"champion": 1}
    folder = versions.fetch(served, f"models:/{MODEL}@champion")
    assert files.tree_hashes(folder) == files.tree_hashes(tiny_sd)


def test_metrics_kept_while_the_server_hangs_arrive_later(
    served: Tracking, caplog: pytest.LogCaptureFixture
) -> None:
    """Its processes are suspended, so calls to it hang, as to a machine that is gone."""
    spec = sink.RunSpec(experiment=MODEL, fingerprint="a" * 64, name="x")
    writer = sink.MlflowSink(served, spec)
    step = 0

    def work(seconds: float) -> None:
        nonlocal step
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            step += 1
            writer.metrics({"loss": 1 / step}, step=step)
            time.sleep(0.1)

    work(sink.FLUSH_EVERY_S + 4)
    (server,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(served.home / "server" / "mlflow.db") in " ".join(process.info["cmdline"] or ())
        and process.ppid() == os.getpid()
    ]
    stopped = [server, *server.children(recursive=True)]
    for process in stopped:
        process.suspend()
    work(40)
    for process in stopped:
        process.resume()
    work(sink.RETRY_EVERY_S + 3)
    writer.close(status="FINISHED")
    run = runs.find_run(served, experiment=MODEL, fingerprint="a" * 64)
    assert run is not None
    client = MlflowClient(served.uri)
    written = [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")]
    assert written == [(number, 1 / number) for number in range(1, step + 1)]
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert [
        record.getMessage()[:24] for record in caplog.records if record.levelname == "WARNING"
    ] == [
        "the metrics wait until M",
        "MLflow answers again and",
    ]
