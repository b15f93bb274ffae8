"""`run`, `plan` and the flow immediately refuse what this machine cannot train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.errors import SettingsError
from tasks.run import subject_run
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new workspace with two settings that need a GPU."""
    root = tmp_path_factory.mktemp("preflight")
    workspaces.build(root)
    workspaces.change(root, "train.mixed_precision", "fp16")
    workspaces.change(root, "train.enable_xformers_memory_efficient_attention", True)
    return root


def dreambooth(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return workspaces.run_in(root, sys.executable, "-m", "cli", *options, check=False)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_command_reports_all_problems_before_starting_anything(root, command):
    done = dreambooth(root, command, SUBJECT)
    words = " ".join(done.stderr.split())
    assert done.returncode == 2, words
    assert "train.mixed_precision: fp16 needs a GPU; found: a CPU" in words
    assert "train.enable_xformers_memory_efficient_attention: needs a GPU" in words
    assert "fits" not in done.stdout
    assert ("--card-gib" in words) == (command == "plan")
    assert not (root / "work").exists()
    assert not (root / ".prefect").exists()


@pytest.mark.parametrize(
    "command", [("run", SUBJECT), ("plan", SUBJECT), ("plan", SUBJECT, "--card-gib", "12")]
)
def test_command_refuses_what_a_later_stage_cannot_use(tmp_path, command):
    workspaces.build(tmp_path)
    workspaces.change(tmp_path, "evaluate.images_per_prompt", 1)
    workspaces.change(tmp_path, "evaluate.clip", "assets/pocket-clop")
    workspaces.change(tmp_path, "data.resolution", 65)
    done = dreambooth(tmp_path, *command)
    words = " ".join(done.stderr.split())
    assert done.returncode == 2, words
    assert "data.resolution: 65, but this base model needs a multiple of 8" in words
    assert "evaluate.images_per_prompt: too few images" in words
    assert "evaluate.clip: the scorer's folder does not exist" in words
    assert "--card-gib" not in words
    assert not (tmp_path / "work").exists()


def test_plan_accepts_the_gpu_of_another_machine(root):
    done = dreambooth(root, "plan", SUBJECT, "--card-gib", "12")
    assert done.returncode == 0, done.stderr
    assert "12.0 GiB on gpu" in " ".join(done.stdout.split())


def test_flow_refuses_before_it_locks_the_subject(root):
    env = workspaces.environment(root)
    with (
        pytest.raises(SettingsError, match="fp16 needs a GPU"),
        subject_run(SUBJECT, root, env),
    ):
        pytest.fail("the flow has begun")
    assert not (root / "work").exists()
    assert not (root / ".state" / "locks" / f"subject-{SUBJECT}.lock").exists()
