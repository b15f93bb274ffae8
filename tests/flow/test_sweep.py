"""`dreambooth sweep` on tiny models: trials outside `work/`, one registered version, kills."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from dreambooth_core import config
from dreambooth_core.registry import runs, sweeps, versions
from dreambooth_core.registry.tracking import connect, resolve_tracking
from dreambooth_core.training.progress import start_line
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.workspaces import answer, call

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

MODEL = "dreambooth-mug"
FIXED = ("--param", "prior.prior_loss_weight=1", "--param", "train.max_train_steps=4")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A checkout; its tests run in order."""
    return workspaces.build(tmp_path_factory.mktemp("sweep") / "checkout")


def trained_steps(workspace: Workspace) -> int:
    """The starts of a trainer that the log has."""
    text = workspace.places("mug").log_file("train").read_text()
    return len(re.findall(start_line("[0-9a-f]{64}"), text))


def test_kill_in_a_trial_and_the_same_command_continues(built: Workspace) -> None:
    arguments = ["-m", "cli", "sweep", "mug", "--trials", "3", *FIXED]
    env = workspaces.environment(built.root)
    log = built.places("mug").log_file("train")
    with (built.root.parent / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=built.root, env=env, stdout=output, stderr=output
        )
        begun = wait_until(
            lambda: log.is_file() and trained_steps(built) == 2, timeout_s=400, every_s=0.1
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert begun
    outcome = answer(built.root, "sweep", "mug", "--trials", "3", *FIXED)
    assert [trial["state"] for trial in outcome["trials"]] == ["complete"] * 3
    assert [trial["number"] for trial in outcome["trials"]][:1] == [0]
    assert outcome["trials"][-1]["number"] > 2
    assert outcome["winner"] is not None


def test_trials_leave_work_and_dvc_alone_and_share_class_images(built: Workspace) -> None:
    assert not (built.root / "work").exists()
    assert not (built.root / "dvc.lock").exists()
    assert len(list(built.state.glob("class-images/*"))) == 1


def test_every_trial_is_a_run_nested_in_the_search(built: Workspace) -> None:
    uri = workspaces.environment(built.root)["MLFLOW_TRACKING_URI"]
    tracking = resolve_tracking(built, uri=uri)
    home = runs.experiment_id(tracking, MODEL)
    found = connect(tracking).search_runs([home])
    (parent,) = [run for run in found if sweeps.WINNER in run.data.tags]
    nested = [run for run in found if sweeps.TRIAL in run.data.tags]
    assert len(nested) == 3
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    assert all("trial/dino" in run.data.metrics for run in nested)
    assert {run.info.status for run in found} == {"FINISHED"}


def test_finished_search_trains_nothing_and_apply_registers_one_version(built: Workspace) -> None:
    before, params = trained_steps(built), config.read_yaml(built.params)
    outcome = answer(built.root, "sweep", "mug", "--trials", "3", *FIXED, "--apply")
    assert trained_steps(built) == before
    overrides = config.read_yaml(built.params)["subjects"]["mug"]["overrides"]
    assert overrides == config.parse_yaml(outcome["overrides"])
    assert config.read_yaml(built.params)["train"] == params["train"]
    uri = workspaces.environment(built.root)["MLFLOW_TRACKING_URI"]
    assert len(versions.list_versions(resolve_tracking(built, uri=uri), name=MODEL)) == 1
    assert outcome["applied"]["verdict"]["promote"]
    status = workspaces.dvc(built.root, "status", "train@mug", "select@mug")
    assert "up to date" in status.stdout


def test_mistakes_are_sentences_with_exit_code_2(built: Workspace) -> None:
    wrong = call(built.root, "sweep", "mug", "--param", "train.sed=1,2", "--param", "x")
    assert wrong.returncode == 2
    assert "did you mean seed" in wrong.stderr
    assert "KEY=LOW..HIGH" in wrong.stderr
    few = call(built.root, "sweep", "mug", "--trials", "1")
    assert (few.returncode, "at least 2 trials" in few.stderr) == (2, True)
    unknown = call(built.root, "sweep", "mugg")
    assert (unknown.returncode, "did you mean mug" in unknown.stderr) == (2, True)


def test_missing_extra_is_one_sentence(built: Workspace) -> None:
    hide = (
        "import sys; sys.modules['optuna'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'optuna' else find(name, *a)\n"
        "from cli.main import run; sys.exit(run(['sweep', 'mug']))"
    )
    done = workspaces.run_in(built.root, sys.executable, "-c", hide, check=False)
    assert done.returncode == 2
    assert 'pip install "dreambooth-pipeline[sweep]"' in done.stderr
    assert "Traceback" not in done.stderr
