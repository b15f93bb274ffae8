"""`train_dreambooth_flax.py`: its checkpoints, its pictures, and the flags that it refuses."""

import csv
import json
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_core import files
from dreambooth_core.errors import SettingsError
from dreambooth_core.models.families import pipeline_family
from dreambooth_core.scripts.flags import DREAMBOOTH_FLAX
from tests.unit.scripts.command import run

PARTS = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


@pytest.mark.jax
def test_jax_resume_is_exact_and_torch_within_1e_5(tiny_sd, photos, tmp_path):
    flags = {"train_text_encoder": True, "max_train_steps": 4, "checkpointing_steps": 2}
    jax = flags | {"script": DREAMBOOTH_FLAX}
    whole, resumed, in_torch = (tmp_path / name for name in ("whole", "resumed", "torch"))
    assert run(tiny_sd, photos, whole, **jax) == 0
    for out in (resumed, in_torch):
        shutil.copytree(whole / "checkpoint-2", out / "checkpoint-2")
    assert run(tiny_sd, photos, resumed, **jax, resume_from_checkpoint="latest") == 0
    for part in PARTS:
        assert files.sha256_file(resumed / part) == files.sha256_file(whole / part)
    assert run(tiny_sd, photos, in_torch, **flags, resume_from_checkpoint="checkpoint-2") == 0
    assert losses(in_torch) == pytest.approx(losses(whole), abs=1e-5)


def losses(out):
    with (out / "checkpoint-4" / "training_state" / "metrics.csv").open() as table:
        return [float(row["loss"]) for row in csv.DictReader(table)]


@pytest.mark.jax
def test_save_steps_saves_checkpoints_and_validation_shows_current_weights(
    tiny_sd, photos, tmp_path
):
    flags = {"train_text_encoder": True, "max_train_steps": 3, "save_steps": 2}
    pictures = {"validation_prompt": "a mug", "validation_steps": 1, "num_validation_images": 1}
    flags |= pictures | {"script": DREAMBOOTH_FLAX, "report_to": "tensorboard"}
    assert run(tiny_sd, photos, tmp_path / "out", **flags) == 0
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    events = EventAccumulator(str(tmp_path / "out/logs/dreambooth"), size_guidance={"images": 0})
    events.Reload()
    assert len({picture.encoded_image_string for picture in events.Images("validation")}) == 3


def test_flax_weights_are_refused_with_a_conversion_hint(tmp_path):
    index = {"_class_name": "FlaxStableDiffusionPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SettingsError, match=r"Flax weights.*CompVis/stable-diffusion-v1-4"):
        pipeline_family(tmp_path)
