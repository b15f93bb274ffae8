"""The guide's command blocks and snippets: found by their headings, run as printed.

Changed are the model, the folders, the numbers of steps and of class images, and: the backslash
that the blocks with a text encoder lack; without a GPU bf16 for fp16 and `cpu` for `cuda`; the
xFormers flag where that is not installed, after the error that names SDPA.
"""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from tests.paths import ROOT

BLOCKS = Path(__file__).with_name("guide_blocks.md").read_text()
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
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=280,
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


def assert_the_snippet_loads(checkpoint: Path, model: Path, folder: Path) -> None:
    """Run the snippet for a checkpoint in `folder`: what it saves has the trained text encoder."""
    text = block("Inference from a checkpoint")
    text = text.replace("CompVis/stable-diffusion-v1-4", str(model))
    with contextlib.chdir(folder):
        run_snippet(text.replace("/sddata/dreambooth/daruma-v2-1/checkpoint-100", str(checkpoint)))
    name = "text_encoder/model.safetensors"
    saved, base = load_file(folder / "dreambooth-pipeline" / name), load_file(model / name)
    assert any(not torch.equal(saved[n].float(), base[n].bfloat16().float()) for n in base)


def assert_the_result_draws(text: str, tmp_path: Path, model: Path, photos: Path) -> None:
    """The block trains, and the last snippet draws a picture by what it leaves."""
    done = launch(text, tmp_path, model, photos)
    assert_trained(done, tmp_path / "out", model)
    with contextlib.chdir(tmp_path):
        run_snippet(block("Inference from the result").replace("path_to_saved_model", "out"))
        assert Image.open("dog-bucket.png").size == (64, 64)


def assert_class_images_are_made(text: str, tmp_path: Path, model: Path, photos: Path) -> None:
    """The block makes its class images and trains."""
    done = launch(text, tmp_path, model, photos)
    assert_trained(done, tmp_path / "out", model)
    assert len(list((tmp_path / "class").iterdir())) == 2


def assert_a_checkpoint_loads(text: str, tmp_path: Path, model: Path, photos: Path) -> None:
    """The block with the one for checkpoints trains, and the snippet loads a checkpoint."""
    text = text.rstrip() + " \\\n" + block("Saving checkpoints")
    assert_trained(launch(text, tmp_path, model, photos), tmp_path / "out", model)
    assert_the_snippet_loads(tmp_path / "out" / "checkpoint-1", model, tmp_path)
