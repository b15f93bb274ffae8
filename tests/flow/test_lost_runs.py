"""A run's machine is lost on a server without `dreambooth up`: Prefect's automations end it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dreambooth_core.workspace import Workspace
from tests import services
from tests.flow import workspaces
from tests.flow.running_up import Up, wait_for
from tests.flow.test_server_faults import own_server
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1500)]

TRAIN = "train-subject/local"
AUTOMATIONS = "infra/automations/lost-runs.yaml"
_STARTS = re.compile(r"training starts after step (\d+)")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    built = workspaces.build(tmp_path_factory.mktemp("lost") / "checkout")
    workspaces.change(built.root, "train.max_train_steps", 20_000)
    workspaces.change(built.root, "train.checkpointing_steps", 10_000)
    (built.root / "flows").symlink_to(workspaces.REPOSITORY / "flows")
    automations = built.root / AUTOMATIONS
    text = automations.read_text()
    for waits, here in (("within: 600", "within: 90"), ("within: 360", "within: 20")):
        assert waits in text
        text = text.replace(waits, here)
    automations.write_text(text)
    return built


@contextlib.contextmanager
def worker(workspace: Workspace, api: str, folder: Path) -> Iterator[Up]:
    """The worker of the compose file, with its own variables for flows."""
    service = services.compose(services.make_secrets(folder / f"{uuid.uuid4()}.env"))["worker"]
    shown = {k: v for k, v in service["environment"].items() if k.startswith("PREFECT_FLOWS_")}
    log = folder / "worker.log"
    with log.open("ab") as sink:
        process = subprocess.Popen(
            service["command"], cwd=workspace.root,
            env={**workspaces.environment(workspace.root), **shown, "PREFECT_API_URL": api},
            stdout=sink, stderr=sink, start_new_session=True,
        )  # fmt: skip
    up = Up(workspace, process, log, api)
    try:
        wait_for(lambda: "Worker" in up.printed() and process.poll() is None)
        yield up
    finally:
        lose(up)


def lose(up: Up) -> None:
    """Kill the worker and everything that it has started, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(up.process.pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    up.process.wait(30)


def train_until_it_works(up: Up) -> uuid.UUID:
    log = up.workspace.places(SUBJECT).log_file("train")

    def starts() -> int:
        return len(_STARTS.findall(log.read_text())) if log.exists() else 0

    before, run = starts(), up.tick(TRAIN, subject=SUBJECT)
    wait_for(lambda: starts() > before, timeout_s=300)
    assert up.states(run) == {"Running"}
    return run


def test_lost_run_ends_as_crashed_and_frees_its_slot(workspace: Workspace, tmp_path: Path) -> None:
    with own_server(workspace) as (_, api):
        with worker(workspace, api, tmp_path) as first:
            first.prefect("deploy", "-n", TRAIN)
            first.prefect("automation", "create", "--from-file", AUTOMATIONS)
            crashed = train_until_it_works(first)
            lose(first)
            lost_at = time.monotonic()
            assert (first.states(crashed), first.slots(TRAIN)) == ({"Running"}, 1)
            wait_for(lambda: first.states(crashed) == {"Crashed"}, timeout_s=180)
            assert time.monotonic() - lost_at > 30  # a heartbeat may have been due
            assert first.slots(TRAIN) == 0
        with worker(workspace, api, tmp_path) as second:
            cancelled = train_until_it_works(second)
            lose(second)
            second.prefect("flow-run", "cancel", str(cancelled))
            assert second.states(cancelled) == {"Cancelling"}
            wait_for(lambda: second.states(cancelled) == {"Cancelled"}, timeout_s=90)
            assert second.slots(TRAIN) == 0
