"""`dreambooth doctor` finds planted faults, explains each, and says what to type."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from cli import doctor
from cli.finding import Check
from cli.ports import DEFAULT_PORTS
from dreambooth_core import locks
from dreambooth_core.records import BaseModelIdentity, Checkpoint, TrainingRun
from dreambooth_core.supervision import free_port
from dreambooth_core.workspace import Workspace
from tasks import this_run
from tasks.run_progress import noted
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

Planted = contextlib.AbstractContextManager[None]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project without faults."""
    return workspaces.build(tmp_path_factory.mktemp("doctor") / "checkout")


@pytest.fixture
def workspace(healthy: Workspace, tmp_path: Path) -> Workspace:
    """A copy of it, to plant a fault in."""
    return Workspace(Path(shutil.copytree(healthy.root, tmp_path / "checkout")))


def examine(workspace: Workspace, **more: str) -> list[Check]:
    """What the doctor says in the workspace's own environment."""
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{workspace.root}/mlflow.db", **more}
    return doctor.examine(workspace, env)


def complaints(found: list[Check]) -> dict[str, Check]:
    """What is not in order, without this machine's lack of a GPU or of free disk."""
    machine = ("device", "free disk", "ports of `dreambooth up`")
    return {c["what"]: c for c in found if c["state"] != "ok" and c["what"] not in machine}


def test_healthy_project_gets_no_complaint(healthy: Workspace) -> None:
    found = examine(healthy)
    assert complaints(found) == {}
    assert {"subjects", "params.yaml", "git", "DVC", "MLflow"} <= {c["what"] for c in found}


@contextlib.contextmanager
def wrong_setting(workspace: Workspace) -> Iterator[None]:
    workspaces.change(workspace.root, "train.learning_rate", "fast")
    yield


@contextlib.contextmanager
def lost_base_model(workspace: Workspace) -> Iterator[None]:
    shutil.rmtree(workspace.root / "assets" / "pocket-sd")
    yield


@contextlib.contextmanager
def lost_photos(workspace: Workspace) -> Iterator[None]:
    folder = workspace.root / "data" / "instance" / SUBJECT
    shutil.rmtree(folder)
    folder.with_suffix(".dvc").unlink()
    yield


@contextlib.contextmanager
def photos_not_pulled(workspace: Workspace) -> Iterator[None]:
    shutil.rmtree(workspace.root / "data" / "instance" / SUBJECT)
    yield


@contextlib.contextmanager
def emptied_checkpoint(workspace: Workspace) -> Iterator[None]:
    folder = workspace.stage_dir(SUBJECT, "train")
    weights = folder / "checkpoint-2" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    one = Checkpoint(
        name="checkpoint-2", step=2, method="full", sha256="0" * 64, files={weights.name: "0" * 64}
    )
    identity = BaseModelIdentity(name="pocket", revision=None, sha256="0" * 64)
    TrainingRun(
        fingerprint="0" * 64,
        base_model=identity,
        method="full",
        max_train_steps=2,
        checkpoints=(one,),
    ).write(folder)
    yield


@contextlib.contextmanager
def settings_of_a_killed_run(workspace: Workspace) -> Iterator[None]:
    code = (
        "import os, pathlib; from tasks import this_run; "
        "from dreambooth_core.workspace import Workspace; "
        f"w = Workspace(pathlib.Path({str(workspace.root)!r})); "
        f"held = this_run.applied(w, {SUBJECT!r}, {{'train.learning_rate': 1e-4}}); "
        "held.__enter__(); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=workspaces.REPOSITORY, check=False)
    assert this_run.left_over(workspace, SUBJECT)
    yield


@contextlib.contextmanager
def suspended_run(workspace: Workspace) -> Iterator[None]:
    code = (
        "import pathlib, time; from dreambooth_core import locks\n"
        f"with locks.hold(pathlib.Path({str(workspace.subject_lock(SUBJECT))!r}), timeout_s=0):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=workspaces.REPOSITORY, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def stalled_run(workspace: Workspace) -> Iterator[None]:
    with (
        locks.hold(workspace.subject_lock(SUBJECT), timeout_s=0),
        noted(workspace, subject=SUBJECT, run="") as note,
    ):
        note.progress("cache")(1, 4)
        path = workspace.run_progress(SUBJECT)
        said = json.loads(path.read_text())
        path.write_text(json.dumps({**said, "updated": time.time() - 3600}))
        yield


@contextlib.contextmanager
def no_repository(workspace: Workspace) -> Iterator[None]:
    shutil.rmtree(workspace.root / ".git")
    yield


@contextlib.contextmanager
def no_dvc(workspace: Workspace) -> Iterator[None]:
    (workspace.root / ".dvc" / "config").unlink()
    yield


@pytest.mark.parametrize(
    ("plant", "what", "state", "found", "hint"),
    [
        (wrong_setting, "params.yaml", "wrong", "train.learning_rate", "fix the settings"),
        (lost_base_model, "base model", "warning", "pocket-sd", "missing folder"),
        (lost_photos, f"photos of {SUBJECT}", "wrong", "no folder", "3 to 6 photos"),
        (photos_not_pulled, f"photos of {SUBJECT}", "warning", ".dvc knows them", "dvc pull data/"),
        (emptied_checkpoint, f"checkpoints of {SUBJECT}", "wrong", "1 files", "dvc checkout"),
        (settings_of_a_killed_run, f"settings of {SUBJECT}", "warning", "--set", "takes them back"),
        (suspended_run, f"run of {SUBJECT}", "wrong", "is suspended", "kill -CONT"),
        (stalled_run, f"run of {SUBJECT}", "warning", "in cache for 60 min", "kill "),
        (no_repository, "git", "wrong", "not a repository", "git init"),
        (no_dvc, "DVC", "wrong", "no .dvc/config", "dvc init"),
    ],
)
def test_planted_fault_is_found_explained_and_alone(
    workspace: Workspace,
    plant: Callable[[Workspace], Planted],
    what: str,
    state: str,
    found: str,
    hint: str,
) -> None:
    with plant(workspace):
        said = complaints(examine(workspace))
    assert list(said) == [what]
    assert said[what]["state"] == state
    assert found in said[what]["found"]
    assert hint in said[what]["hint"]


def test_servers_that_do_not_answer_are_found(healthy: Workspace) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    said = complaints(
        examine(healthy, PREFECT_API_URL=f"{nowhere}/api", MLFLOW_TRACKING_URI=nowhere)
    )
    assert set(said) == {"Prefect server", "MLflow"}
    assert "dreambooth up" in said["Prefect server"]["hint"]


def test_port_that_another_program_has_is_found(healthy: Workspace) -> None:
    port = DEFAULT_PORTS["--metrics-port"]
    with socket.socket() as program:
        with contextlib.suppress(OSError):  # if some other program has it already
            program.bind(("127.0.0.1", port))
            program.listen()
        said = {c["what"]: c for c in examine(healthy)}["ports of `dreambooth up`"]
    assert str(port) in said["found"]
    assert "--metrics-port N" in said["hint"]


@pytest.mark.slow
@pytest.mark.service
def test_reasons_why_schedules_start_nothing_are_found(healthy: Workspace) -> None:
    with prefect_test_harness(server_startup_timeout=300):
        api = str(PREFECT_API_URL.value())

        def prefect(*words: str) -> None:
            done = subprocess.run(
                [sys.executable, "-m", "prefect", "--no-prompt", *words],
                cwd=healthy.root,
                env={**workspaces.environment(healthy.root), "PREFECT_API_URL": api},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr

        said = complaints(examine(healthy, PREFECT_API_URL=api))
        assert "deploy --all" in said["deployments"]["hint"]
        (healthy.root / "flows").symlink_to(workspaces.REPOSITORY / "flows")
        prefect("work-pool", "create", "local", "--type", "process")
        prefect("deploy", "--all")
        said = complaints(examine(healthy, PREFECT_API_URL=api))
        assert "has no worker" in said["work pool"]["found"]
        prefect("work-pool", "pause", "local")
        said = complaints(examine(healthy, PREFECT_API_URL=api))
        assert said["work pool"]["hint"] == "prefect work-pool resume local"
