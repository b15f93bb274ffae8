"""`dreambooth up` is stopped, killed or loses a process while a deployment's run works."""

from __future__ import annotations

import contextlib
import re
import signal
import time
import uuid
from pathlib import Path

import psutil
import pytest

from cli.server import answers
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.running_up import NIGHTLY, Up, running, wait_for
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.slow, pytest.mark.service, pytest.mark.timeout(1500)]

WATCHER = "train a subject whose photos changed"
_STARTS = re.compile(r"training starts after step (\d+)")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One workspace; each test stops its training later than the test before."""
    built = workspaces.build(tmp_path_factory.mktemp("faults") / "checkout")
    workspaces.change(built.root, "train.max_train_steps", 20_000)
    workspaces.change(built.root, "train.checkpointing_steps", 10_000)
    (built.root / "flows").symlink_to(workspaces.REPOSITORY / "flows")
    return built


def train_until_it_works(up: Up) -> uuid.UUID:
    """Start a nightly run and wait until its training works."""
    log = up.workspace.places(SUBJECT).log_file("train")

    def starts() -> int:
        return len(_STARTS.findall(log.read_text())) if log.exists() else 0

    before, run = starts(), up.tick()
    wait_for(lambda: starts() > before or "Cancelled" in up.states(run))
    assert up.states(run) == {"Running"}
    return run


def test_ctrl_c_lets_the_run_report_and_the_next_tick_runs(
    workspace: Workspace, tmp_path: Path
) -> None:
    with running(workspace, tmp_path / "first") as up:
        run = train_until_it_works(up)
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(90) == 0
    assert "the run in work was stopped" in up.printed()
    with running(workspace, tmp_path / "second") as up:
        assert up.states(run) == {"Crashed"}
        assert "no process works on it" not in up.printed()
        train_until_it_works(up)


def test_power_cut_frees_the_slot_and_the_next_tick_runs(
    workspace: Workspace, tmp_path: Path
) -> None:
    with running(workspace, tmp_path / "first") as up:
        run = train_until_it_works(up)
        for process in [psutil.Process(up.process.pid), *up.processes("")]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    with running(workspace, tmp_path / "second") as up:
        assert up.states(run) == {"Crashed"}
        assert up.printed().count("no process works on it any more") == 2
        assert up.slots() == 0
        train_until_it_works(up)


def test_killed_flow_process_is_noticed_while_up_runs(workspace: Workspace, tmp_path: Path) -> None:
    with running(workspace, tmp_path / "log") as up:
        run = train_until_it_works(up)
        up.processes("prefect.engine")[0].kill()
        wait_for(lambda: up.states(run) == {"Crashed"}, timeout_s=90)
        assert up.slots() == 0
        assert "train-subject mug: crashed. No process works on this run any more." in up.printed()


def test_killed_worker_ends_up_with_its_name_and_the_run_reports(
    workspace: Workspace, tmp_path: Path
) -> None:
    with running(workspace, tmp_path / "first") as up:
        run = train_until_it_works(up)
        up.processes("prefect worker start")[0].kill()
        assert up.process.wait(120) == 1
    assert "worker ended with code -9" in up.printed()
    assert "see .state/logs/worker.log" in up.printed()
    with running(workspace, tmp_path / "second") as up:
        assert up.states(run) == {"Crashed"}
        assert up.slots() == 0


def test_killed_prefect_server_starts_again_and_the_run_goes_on(
    workspace: Workspace, tmp_path: Path
) -> None:
    with running(workspace, tmp_path / "log") as up:
        run = train_until_it_works(up)
        wait_for(lambda: time.time() - psutil.Process(up.process.pid).create_time() > 90)
        up.processes("prefect server start")[0].kill()
        wait_for(lambda: "prefect-server ended with code -9 and was started again" in up.printed())
        wait_for(lambda: answers(f"{up.api}/health"))
        assert up.states(run) == {"Running"}
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(90) == 0
        assert "the run in work was stopped" in up.printed()


def test_next_run_completes_and_redeploy_keeps_what_a_user_paused(
    workspace: Workspace, tmp_path: Path
) -> None:
    workspaces.change(workspace.root, "train.max_train_steps", 4)
    workspaces.change(workspace.root, "train.checkpointing_steps", 2)
    with running(workspace, tmp_path / "log") as up:
        run = up.tick()
        with up.client() as client:
            (nightly,) = client.read_deployment_by_name(NIGHTLY).schedules
        up.prefect("deployment", "schedule", "pause", NIGHTLY, str(nightly.id))
        up.prefect("deployment", "schedule", "create", NIGHTLY, "--interval", "86400")
        up.prefect("automation", "pause", WATCHER)
        up.prefect("deploy", "--all")
        with up.client() as client:
            assert [each.enabled for each in client.read_automations_by_name(WATCHER)] == [False]
            found = client.read_deployment_by_name(NIGHTLY).schedules
        assert sorted(each.active for each in found) == [False, True]
        assert [each.id for each in found if not each.active] == [nightly.id]
        wait_for(lambda: up.states(run) == {"Completed"}, timeout_s=400)
