"""A script with two processes: DDP and DeepSpeed, started by `accelerate launch`."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from dreambooth_core import files
from dreambooth_core.supervision import free_port
from tests.paths import ROOT
from tests.unit.scripts.command import arguments, prior, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
DDP = ("--multi_gpu", "--num_processes=2")  # of as many CPUs, where there is no GPU
FSDP2 = (f"--config_file={ROOT / 'infra/accelerate/fsdp2-two-cpus.yaml'}",)
DEEPSPEED = (f"--config_file={ROOT / 'infra/accelerate/deepspeed-two-cpus.yaml'}",)
FLAGS = {
    "max_train_steps": 4, "checkpointing_steps": 2,
    "validation_prompt": "a mug", "validation_steps": 2, "num_validation_images": 1,
}  # fmt: skip


def launch(launcher: tuple[str, ...], flags: list[str]) -> subprocess.CompletedProcess:
    """The script as a user starts it, in the project's folder."""
    accelerate = Path(sys.executable).with_name("accelerate")
    command = [str(accelerate), "launch", f"--main_process_port={free_port()}", *launcher]
    return subprocess.run(
        [*command, "train_dreambooth.py", *flags],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def skip_where_it_cannot_run(launcher: object) -> None:
    if launcher is DEEPSPEED:
        pytest.importorskip("deepspeed")
    if torch.cuda.is_available():
        pytest.skip("two processes would need two GPUs")


def losses(out: Path) -> list[float]:
    with (out / "checkpoint-4" / "training_state" / "metrics.csv").open() as table:
        return [float(row["loss"]) for row in csv.DictReader(table)]


@pytest.mark.parametrize("launcher", [DDP, DEEPSPEED], ids=["DDP", "DeepSpeed"])
def test_two_processes_equal_a_double_batch_and_resume_exactly(launcher, tiny_sd, photos, tmp_path):
    skip_where_it_cannot_run(launcher)
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    flags = FLAGS | prior(tmp_path / "class", 2)
    assert run(tiny_sd, photos, one, **flags, train_batch_size=2) == 0
    done = launch(launcher, arguments(tiny_sd, photos, two, **flags))
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)

    shutil.copytree(two / "checkpoint-2", again / "checkpoint-2")
    flags["resume_from_checkpoint"] = "latest"
    done = launch(launcher, arguments(tiny_sd, photos, again, **flags))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("resuming from checkpoint-2") == 1
    assert files.sha256_file(again / WEIGHTS) == files.sha256_file(two / WEIGHTS)
    unet = UNet2DConditionModel.from_pretrained(again / "checkpoint-4" / "unet")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, unet=unet, safety_checker=None)
    assert pipe("photo", num_inference_steps=1).images[0].size == (64, 64)


@pytest.mark.parametrize("launcher", [FSDP2, DEEPSPEED], ids=["FSDP2", "DeepSpeed"])
def test_resume_with_another_launcher_keeps_only_the_weights(launcher, tiny_sd, photos, tmp_path):
    """Six updates move a weight by six rates at most; two more by two, and not by eight."""
    skip_where_it_cannot_run(launcher)
    rate, out = 1e-4, tmp_path / "out"
    flags = {"checkpointing_steps": 1, "learning_rate": rate, "adam_weight_decay": 0}

    def by_launcher(num_steps: int, **more: object) -> str:
        flags_of = arguments(tiny_sd, photos, out, **flags, max_train_steps=num_steps, **more)
        done = launch(launcher, flags_of)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    resumed = {"resume_from_checkpoint": "latest"}
    by_launcher(6)
    assert run(tiny_sd, photos, out, **flags, max_train_steps=7, **resumed) == 0
    told = by_launcher(8, **resumed)
    assert told.count("the weights continue, the optimizer starts anew") == 1
    assert "training starts after step 7 of 8" in told
    first, last = (load_file(out / f"checkpoint-{step}" / WEIGHTS) for step in (6, 8))
    moved = max((last[name] - first[name]).abs().max().item() for name in first)
    assert 0.5 * rate < moved < 2.5 * rate


def test_launcher_that_starts_one_of_two_processes_is_refused(tiny_sd, photos, tmp_path):
    launcher = ("--cpu", "--num_processes=2")
    done = launch(launcher, arguments(tiny_sd, photos, tmp_path / "out"))
    assert done.returncode != 0
    assert "several processes were requested, but one was started" in done.stderr
    assert "accelerate launch --multi_gpu --num_processes N" in done.stderr
    assert not (tmp_path / "out").exists()
