"""A `dreambooth up` for tests: what its user sees and asks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dreambooth_core.supervision import free_port
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces

NIGHTLY = "retrain-all/nightly"


@dataclass
class Up:
    """A running `dreambooth up`, and what a user sees and asks."""

    workspace: Workspace
    process: subprocess.Popen[bytes]
    log: Path
    api: str

    def printed(self) -> str:
        return self.log.read_text()

    def prefect(self, *arguments: str) -> str:
        return self.call("prefect", "--no-prompt", *arguments)

    def call(self, module: str, *arguments: str) -> str:
        """The output of a module of Python, run in the workspace as a user of this server does."""
        env = {**workspaces.environment(self.workspace.root), "PREFECT_API_URL": self.api}
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=self.workspace.root, env=env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api)

    def tick(self, deployment: str = NIGHTLY, **parameters: Any) -> uuid.UUID:
        """Start a run of a deployment, as its schedule does."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def states(self, run: uuid.UUID) -> set[str]:
        """The states of a run and of those that it started."""
        from prefect.client.schemas import filters

        parent = filters.FlowRunFilterParentFlowRunId(any_=[run])
        with self.client() as client:
            below = client.read_flow_runs(
                flow_run_filter=filters.FlowRunFilter(parent_flow_run_id=parent)
            )
            return {str(each.state_name) for each in (client.read_flow_run(run), *below)}

    def slots(self, deployment: str = NIGHTLY) -> int:
        """The taken slots of a deployment."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.read_global_concurrency_limit_by_name(
                f"deployment:{found.id}"
            ).active_slots

    def processes(self, word: str) -> list[psutil.Process]:
        """The processes of this project with a word in their command line."""
        root, found = str(self.workspace.root), list[psutil.Process]()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd() == root and word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def trainings(self) -> set[str]:
        """The jobs that trainers of this project work on now."""
        found = set[str]()
        for process in self.processes("train-worker"):
            with contextlib.suppress(psutil.Error, IndexError):
                found.add(process.cmdline()[-1])
        return found


@contextlib.contextmanager
def running(workspace: Workspace, log: Path, *, deploy: bool = True) -> Iterator[Up]:
    """`dreambooth up` of a workspace, by default with its deployments."""
    prefect, mlflow = free_port(), free_port()
    options = ["--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]
    options += ["--metrics-port", str(free_port())]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "up", *options],
            cwd=workspace.root,
            env=workspaces.environment(workspace.root),
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    up = Up(workspace, process, log, f"http://127.0.0.1:{prefect}/api")
    try:
        wait_for(lambda: "runs are listed below" in up.printed() or process.poll() is not None)
        assert process.poll() is None, up.printed()
        if deploy:
            up.prefect("deploy", "--all")
        yield up
    finally:
        process.terminate()
        process.wait(120)


def wait_for(condition: Callable[[], object], *, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)
