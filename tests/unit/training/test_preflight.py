"""What this machine cannot do is told before anything is made, all of it at once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config

from dreambooth_core import config
from dreambooth_core.errors import DreamBoothError, SettingsError
from dreambooth_core.pipeline import StageContext, preflight, run_stage
from dreambooth_core.scripts.flags import DREAMBOOTH
from dreambooth_core.scripts.parsing import in_flags
from dreambooth_core.training.launch.accelerate_config import RANK, RENDEZVOUS
from dreambooth_core.workspace import STAGES, Workspace
from tasks import staleness
from tests.unit.base.test_config import ROOT, changed, subject_of_shipped

SUBJECT = subject_of_shipped()
TWO_NODES = {
    "train__accelerate_config": "two-nodes-x-8",
    "train__num_processes": 16,
    "train__mixed_precision": "bf16",
}
XFORMERS = "train__enable_xformers_memory_efficient_attention"


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def _without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of those that only some settings need."""
    real = importlib.util.find_spec
    gone = ("xformers", "bitsandbytes", "deepspeed", "wandb")

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in gone else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def workspace_of(tmp_path: Path, **changes: Any) -> Workspace:
    for name in ("infra", "assets", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    changed(tmp_path, **changes)
    return Workspace(tmp_path)


def problem_of(workspace: Workspace, env: dict[str, str] | None = None) -> SettingsError | None:
    view = config.load_view(workspace, SUBJECT)
    try:
        preflight.refuse(preflight.findings(workspace.root, view, env or {}), STAGES)
    except SettingsError as error:
        return error
    return None


def context_of(workspace: Workspace) -> StageContext:
    return StageContext(config.load_view(workspace, SUBJECT), workspace.places(SUBJECT))


def lines_of(workspace: Workspace) -> list[str]:
    problem = problem_of(workspace)
    assert problem is not None
    assert problem.exit_code == 2
    return str(problem).splitlines()


def test_the_shipped_settings_can_be_trained_anywhere(tmp_path):
    assert problem_of(workspace_of(tmp_path)) is None


@pytest.mark.usefixtures("_without_packages")
def test_everything_unsupported_on_a_cpu_is_reported_at_once(tmp_path):
    own = {XFORMERS: True, "train__compile_blocks": True, "train__use_8bit_adam": True}
    own |= {"compute__device": "cuda", "train__mixed_precision": "fp16"}
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        lines = lines_of(workspace_of(tmp_path, **own))
    wanted = [
        "compute.device: cuda, but torch finds no GPU",
        "train.mixed_precision: fp16 needs a GPU",
        "train.enable_xformers_memory_efficient_attention: needs a GPU",
        "train.compile_blocks: torch.compile needs a C++ compiler",
        "train.use_8bit_adam: needs bitsandbytes",
    ]
    assert [line[: len(text)] for line, text in zip(lines, wanted, strict=True)] == wanted
    assert all("what to do: " in line for line in lines)


@pytest.mark.usefixtures("_without_packages")
def test_a_missing_deepspeed_is_told_with_the_pip_line(tmp_path):
    own = {"train__accelerate_config": "deepspeed-two-cpus", "train__num_processes": 2}
    (line,) = lines_of(workspace_of(tmp_path, **own))
    assert "train.strategy: DeepSpeed cannot be imported" in line
    assert 'pip install "dreambooth-pipeline[deepspeed]"' in line


@pytest.mark.usefixtures("_without_packages")
def test_a_missing_tracker_is_told_with_the_pip_line(tmp_path):
    (line,) = lines_of(workspace_of(tmp_path, runtime__report_to=["tensorboard", "wandb"]))
    assert "runtime.report_to: wandb is not installed" in line
    assert "what to do: pip install wandb" in line


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("auto", "a CPU, because compute.device is auto and there is no GPU"),
        ("cpu", "a CPU, because compute.device is cpu"),
    ],
)
def test_fp16_on_a_cpu_names_the_setting_and_the_device(tmp_path, device, why):
    own = {"train__mixed_precision": "fp16", "compute__device": device}
    problem = problem_of(workspace_of(tmp_path, **own))
    assert problem is not None
    text = f"fp16 needs a GPU; found: {why}; allowed: 'no' and bf16"
    assert str(problem).startswith(f"train.mixed_precision: {text}")
    assert in_flags(problem, DREAMBOOTH.flags.model_fields).startswith(f"--mixed_precision: {text}")


def test_one_of_several_machines_needs_its_rank(tmp_path):
    workspace = workspace_of(tmp_path, **TWO_NODES)
    (line,) = lines_of(workspace)
    assert "two-nodes-x-8 is for 2 machines, but the rank of this one is not set" in line
    assert f"start it on every machine with {RANK}=0, 1, ..." in line
    assert problem_of(workspace, {RANK: "1", RENDEZVOUS: "n0:29500"}) is None
    half = problem_of(workspace, {RANK: "1"})
    assert half is not None
    assert "must define both the rank and the rendezvous" in str(half)


@pytest.mark.parametrize("stage", preflight.TRAINING_STAGES)
def test_no_stage_starts_if_training_is_impossible(tmp_path, stage):
    workspace = workspace_of(tmp_path, train__mixed_precision="fp16")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        run_stage(context_of(workspace), stage)
    assert sorted(tmp_path.rglob("*")) == before


def test_data_gate_runs_on_machines_that_cannot_train(tmp_path):
    """Photos are looked at before a GPU is hired; what is missing here is a subject's photos."""
    nowhere = {f"subjects__{SUBJECT}__instance_dir": "nowhere"}
    workspace = workspace_of(tmp_path, train__mixed_precision="fp16", **nowhere)
    with pytest.raises(DreamBoothError) as caught:
        run_stage(context_of(workspace), "validate")
    assert "fp16" not in str(caught.value)
    assert f"subjects.{SUBJECT}.instance_dir: this folder does not exist" in str(caught.value)


def test_dvcs_stages_refuse_with_exit_code_2_and_make_nothing(tmp_path):
    workspace = workspace_of(tmp_path, train__mixed_precision="fp16", compute__device="cpu")
    command = [sys.executable, "-m", "dreambooth_core", "class-images", "--subject", SUBJECT]
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: train.mixed_precision: fp16 needs a GPU" in done.stderr
    assert not (workspace.root / "work").exists()


def test_settings_for_every_machine_are_checked_without_torch(tmp_path):
    workspace_of(tmp_path)
    script = (
        "import sys; from pathlib import Path\n"
        "from dreambooth_core import config\n"
        "from dreambooth_core.pipeline import preflight\n"
        "from dreambooth_core.workspace import STAGES, Workspace\n"
        "workspace = Workspace(Path(sys.argv[1]))\n"
        "view = config.load_view(workspace, sys.argv[2])\n"
        "assert preflight.findings(workspace.root, view, {}) == []\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), SUBJECT]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(("does", "refused"), [("run", True), ("skip", False)])
def test_run_is_refused_only_if_training_would_run(tmp_path, monkeypatch, does, refused):
    """What was trained on a GPU can be compared and registered on a laptop."""
    workspace = workspace_of(tmp_path, train__mixed_precision="fp16")
    ahead = {**dict.fromkeys(STAGES, "skip"), "train": does, "register": "run"}
    monkeypatch.setattr(staleness, "stages_ahead", lambda *_, **__: ahead)
    view = config.load_view(workspace, SUBJECT)
    if not refused:
        staleness.refuse_the_impossible(workspace, view, env={})
        return
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        staleness.refuse_the_impossible(workspace, view, env={})
