"""`train_dreambooth_flax.py`: the seed's Flax command, and what is refused at the door."""

import json
import os
import subprocess
import sys

import pytest
from diffusers import StableDiffusionPipeline

from dreambooth_core.errors import SettingsError
from dreambooth_core.models.families import pipeline_family
from tests.paths import ROOT
from tests.unit.jax.conftest import FLAGS


@pytest.mark.jax
def test_the_seeds_flax_command_with_prior_and_text_encoder_leaves_a_pipeline(
    tmp_path, tiny_sd, photos
):
    done = _run(
        f"--pretrained_model_name_or_path={tiny_sd}", "--train_text_encoder",
        f"--instance_data_dir={photos}", f"--class_data_dir={tmp_path / 'class'}",
        f"--output_dir={tmp_path / 'out'}",
        "--with_prior_preservation", "--prior_loss_weight=1.0",
        "--instance_prompt=a photo of sks dog", "--class_prompt=a photo of dog",
        "--resolution=64", "--train_batch_size=1", "--learning_rate=2e-6",
        "--num_class_images=2", "--max_train_steps=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    base = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    for part in ("unet", "text_encoder"):
        pairs = zip(getattr(pipe, part).parameters(), getattr(base, part).parameters(), strict=True)
        assert any(not own.equal(other) for own, other in pairs), part


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "train_dreambooth_flax.py", *arguments],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": FLAGS, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip


def test_flax_weights_are_refused_with_the_way_to_convert_them(tmp_path):
    index = {"_class_name": "FlaxStableDiffusionPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SettingsError, match=r"Flax weights.*CompVis/stable-diffusion-v1-4"):
        pipeline_family(tmp_path)
