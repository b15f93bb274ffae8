"""The seed document's command blocks run as printed, and its snippets load what they leave.

Changed are the model, the folders, the numbers of steps and of class images, and: the backslash
that the block of the text encoder lacks; without a GPU bf16 for fp16 and `cpu` for `cuda`; the
xFormers flag where that is not installed, after the error that names SDPA.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from tests.paths import ROOT

BLOCKS = Path(__file__).with_name("seed_blocks.md").read_text()
XFORMERS = "  --enable_xformers_memory_efficient_attention \\\n"
HAS_GPU = torch.cuda.is_available()


def block(title: str) -> str:
    """The code under a heading of the test data."""
    found = re.search(rf"## {re.escape(title)}\n\n```\w+\n(.*?)```", BLOCKS, re.DOTALL)
    assert found, title
    return found[1]


def for_this_machine(text: str) -> str:
    if HAS_GPU:
        return text
    text = text.replace("--mixed_precision=fp16", "--mixed_precision=bf16")
    return text.replace("torch.float16", "torch.bfloat16").replace('"cuda"', '"cpu"')


def launch(text: str, tmp_path: Path, model: Path, photos: Path) -> subprocess.CompletedProcess:
    """Run a block in a shell, in the project's folder, with small numbers and our own folders."""
    folders = {
        "MODEL_NAME": model, "INSTANCE_DIR": photos,
        "CLASS_DIR": tmp_path / "class", "OUTPUT_DIR": tmp_path / "out",
    }  # fmt: skip
    for name, path in folders.items():
        text = re.sub(rf'export {name}=".*"', f'export {name}="{path}"', text)
    text = re.sub(r"--max_train_steps=\d+", "--max_train_steps=2", text)
    text = re.sub(r"--num_class_images=\d+", "--num_class_images=2", text)
    text = re.sub(r"--checkpointing_steps=\d+", "--checkpointing_steps=1", text)
    # the settings of `accelerate config default` on this machine, whoever runs the test
    # and its environment's commands, whether it is activated or not
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PATH": commands}
    return subprocess.run(
        ["bash", "-ec", for_this_machine(text)],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


def run_snippet(text: str) -> None:
    exec(compile(for_this_machine(text), "snippet", "exec"), {})


def assert_trained(
    done: subprocess.CompletedProcess, out: Path, model: Path, *, at_most: float = 1e-4
) -> None:
    """The result is a pipeline whose U-Net moved by about its learning rate a step."""
    assert done.returncode == 0, done.stdout + done.stderr
    unet = "unet/diffusion_pytorch_model.safetensors"
    now, before = load_file(out / unet), load_file(model / unet)
    moved = max((now[name] - before[name]).abs().max().item() for name in before)
    assert 1e-6 < moved < at_most
    StableDiffusionPipeline.from_pretrained(out)


def test_the_first_block_trains_and_the_last_snippet_draws_a_picture(
    tmp_path, tiny_sd, photos, monkeypatch
):
    done = launch(block("Fine-tuning"), tmp_path, tiny_sd, photos)
    assert_trained(done, tmp_path / "out", tiny_sd)
    monkeypatch.chdir(tmp_path)
    run_snippet(block("Inference from the result").replace("path_to_saved_model", "out"))
    assert Image.open("dog-bucket.png").size == (64, 64)


def test_the_block_with_prior_preservation_makes_the_class_images_and_trains(
    tmp_path, tiny_sd, photos
):
    done = launch(block("Prior-preserving loss"), tmp_path, tiny_sd, photos)
    assert_trained(done, tmp_path / "out", tiny_sd)
    assert len(list((tmp_path / "class").iterdir())) == 2


def test_the_block_of_the_text_encoder_leaves_a_checkpoint_that_its_snippet_loads(
    tmp_path, tiny_sd, photos, monkeypatch
):
    printed = block("Text encoder and U-Net")
    assert "  --use_8bit_adam\n" in printed  # the shell would end the command here
    text = printed.replace("  --use_8bit_adam\n", "  --use_8bit_adam \\\n")
    text = text.rstrip() + " \\\n" + block("Saving checkpoints")
    assert_trained(launch(text, tmp_path, tiny_sd, photos), tmp_path / "out", tiny_sd)
    snippet = block("Inference from a checkpoint").replace(
        "CompVis/stable-diffusion-v1-4", str(tiny_sd)
    )
    old = "/sddata/dreambooth/daruma-v2-1/checkpoint-100"
    monkeypatch.chdir(tmp_path)
    run_snippet(snippet.replace(old, str(tmp_path / "out" / "checkpoint-1")))
    saved = load_file(tmp_path / "dreambooth-pipeline" / "text_encoder" / "model.safetensors")
    base = load_file(tiny_sd / "text_encoder" / "model.safetensors")
    assert any(not torch.equal(saved[name].float(), base[name].bfloat16().float()) for name in base)


@pytest.mark.slow
def test_the_block_for_16_gb_trains(tmp_path, tiny_sd, photos):
    assert_trained(launch(block("16 GB"), tmp_path, tiny_sd, photos), tmp_path / "out", tiny_sd)


@pytest.mark.slow
def test_the_block_for_12_gb_trains_and_names_sdpa_where_xformers_is_missing(
    tmp_path, tiny_sd, photos
):
    text = block("12 GB")
    done = launch(text, tmp_path, tiny_sd, photos)
    if "xFormers is not installed" in done.stderr:
        assert done.returncode != 0
        assert "SDPA" in done.stderr
        assert not (tmp_path / "out").exists()
        assert XFORMERS in text
        done = launch(text.replace(XFORMERS, ""), tmp_path, tiny_sd, photos)
    assert_trained(done, tmp_path / "out", tiny_sd)


@pytest.mark.slow
def test_the_block_for_8_gb_trains_and_saves_on_all_processes_under_deepspeed(
    tmp_path, tiny_sd, photos
):
    pytest.importorskip("deepspeed")
    config = (
        tmp_path / "hf" / "accelerate" / "default_config.yaml"
    )  # what `accelerate config` writes
    config.parent.mkdir(parents=True)
    config.write_text((ROOT / "infra/accelerate/deepspeed-two-cpus.yaml").read_text())
    text = block("8 GB").rstrip() + " \\\n" + block("Saving checkpoints")
    done = launch(text, tmp_path, tiny_sd, photos)
    # DeepSpeed keeps the networks in half precision: what is saved is rounded to it.
    assert_trained(done, tmp_path / "out", tiny_sd, at_most=2e-3)
    state = tmp_path / "out" / "checkpoint-1" / "training_state"
    assert len(list(state.rglob("*optim_states.pt"))) == 2


@pytest.mark.slow
def test_the_block_for_8_gb_trains_in_half_precision(tmp_path, tiny_sd, photos):
    assert_trained(launch(block("8 GB"), tmp_path, tiny_sd, photos), tmp_path / "out", tiny_sd)
