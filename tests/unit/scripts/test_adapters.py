"""The LoRA scripts: what their own flags do to the adapter, for Stable Diffusion and for XL."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image, ImageOps
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_core import files
from dreambooth_core.scripts.flags import DREAMBOOTH, DREAMBOOTH_LORA, DREAMBOOTH_LORA_SDXL
from dreambooth_core.scripts.validation import after_epochs
from tests import tiny_models
from tests.unit.scripts.command import prior, run

ADAPTER = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Path:
    """Four photos that no test changes."""
    return tiny_models.build_photos(tmp_path_factory.mktemp("subject") / "photos")


def train(model: Path, photos: Path, out: Path, *, script=DREAMBOOTH_LORA, **flags) -> dict:
    """The adapter's tensors after one step, or as many as the flags say."""
    flags = {"max_train_steps": 1, "learning_rate": 1e-2, **flags}
    assert run(model, photos, out, script=script, **flags) == 0
    return load_file(out / ADAPTER)


def test_rank_layers_and_alpha_shape_and_scale_the_adapter(tiny_sd, subject, tmp_path):
    flags = {"rank": 3, "lora_layers": "to_q, to_out.0"}
    tensors = train(tiny_sd, subject, tmp_path / "a", **flags, lora_alpha=3)
    assert {t.shape[0] for name, t in tensors.items() if ".lora_A." in name} == {3}
    assert {name.rpartition(".lora")[0].partition("attn")[2][2:] for name in tensors} == {
        "to_q", "to_out.0",
    }  # fmt: skip
    stronger = train(tiny_sd, subject, tmp_path / "b", **flags, lora_alpha=300, max_train_steps=2)
    weaker = train(tiny_sd, subject, tmp_path / "c", **flags, lora_alpha=3, max_train_steps=2)
    assert any(not torch.equal(stronger[name], weaker[name]) for name in weaker)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("to_k,to_xx", "--lora_layers: no layer of the U-Net has the name: to_xx; "),
        ("to_q,to_out", "--lora_layers: cannot take an adapter: to_out; "),
    ],
)
def test_layer_that_cannot_have_an_adapter_is_refused(
    tiny_sd, subject, tmp_path, capsys, layers, said
):
    flags = {"script": DREAMBOOTH_LORA, "lora_layers": layers, **prior(tmp_path / "class", 2)}
    assert run(tiny_sd, subject, tmp_path / "out", **flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "class").exists()  # class images would have been made for nothing


def test_dropout_changes_the_adapter_but_interpolation_does_not(tiny_sd, subject, tmp_path):
    base = train(tiny_sd, subject, tmp_path / "a")
    dropped = train(tiny_sd, subject, tmp_path / "b", lora_dropout=0.5)
    assert any(not torch.equal(base[name], dropped[name]) for name in base)
    train(tiny_sd, subject, tmp_path / "c", image_interpolation_mode="bilinear")
    assert files.tree_hashes(tmp_path / "a") == files.tree_hashes(tmp_path / "c")


def test_photos_are_encoded_in_fp32_at_every_precision(tiny_sdxl, subject, tmp_path, monkeypatch):
    seen = []

    def watch(vae, *args, **kwargs):
        seen.append((vae.dtype, args[0].dtype, torch.is_autocast_enabled("cpu")))
        return encode(vae, *args, **kwargs)

    encode = AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", watch)
    train(tiny_sdxl, subject, tmp_path, script=DREAMBOOTH_LORA_SDXL, mixed_precision="bf16")
    assert set(seen) == {(torch.float32, torch.float32, False)}


def test_sdxl_adapter_of_all_networks_loads_and_exports_to_kohya(tiny_sdxl, subject, tmp_path):
    flags = {"train_text_encoder": True, "output_kohya_format": True, "use_dora": True}
    out = tmp_path / "out"
    tensors = train(
        tiny_sdxl, subject, out, script=DREAMBOOTH_LORA_SDXL, **flags, checkpointing_steps=1
    )
    assert {name.split(".")[0] for name in tensors} == {"unet", "text_encoder", "text_encoder_2"}
    assert any("lora_magnitude_vector" in name for name in tensors)
    kohya = load_file(out / "pytorch_lora_weights_kohya.safetensors")
    assert {name.split("_")[1] for name in kohya} == {"unet", "te1", "te2"}
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    pipe.load_lora_weights(out / "checkpoint-1")


def test_sdxl_text_encoders_have_their_own_learning_rate(tiny_sdxl, subject, tmp_path):
    """A B-matrix begins at 0, and AdamW's first update is its rate."""
    flags = {"train_text_encoder": True, "text_encoder_lr": 1e-3}
    tensors = train(tiny_sdxl, subject, tmp_path / "out", script=DREAMBOOTH_LORA_SDXL, **flags)
    largest = {
        part: max(t.abs().max().item() for n, t in tensors.items() if _is_b(n, part))
        for part in ("unet", "text_encoder", "text_encoder_2")
    }
    assert largest == pytest.approx(
        {"unet": 1e-2, "text_encoder": 1e-3, "text_encoder_2": 1e-3}, rel=1e-2
    )


def _is_b(name: str, part: str) -> bool:
    return name.startswith(f"{part}.") and "lora_B" in name


def test_random_flip_trains_on_mirrored_photos(tiny_sdxl, tmp_path):
    symmetric, lopsided = tmp_path / "symmetric", tmp_path / "lopsided"
    tiny_models.build_photos(lopsided, side=64)
    symmetric.mkdir()
    for path in lopsided.iterdir():
        with Image.open(path) as photo:
            half = photo.crop((0, 0, 32, 64))
            both = Image.new("RGB", (64, 64))
            both.paste(half, (0, 0))
            both.paste(ImageOps.mirror(half), (32, 0))
            both.save(symmetric / path.name)
    for photos, is_same in ((symmetric, True), (lopsided, False)):
        pair = [
            train(
                tiny_sdxl, photos, tmp_path / f"{photos.name}-{index}",
                script=DREAMBOOTH_LORA_SDXL, train_batch_size=4, max_train_steps=2, **flags,
            )
            for index, flags in enumerate(({}, {"random_flip": True}))
        ]  # fmt: skip
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0]) is is_same


def test_repeats_make_an_epoch_longer(tiny_sdxl, subject, tmp_path):
    flags = {"script": DREAMBOOTH_LORA_SDXL, "max_train_steps": None, "train_batch_size": 2}
    assert run(tiny_sdxl, subject, tmp_path, **flags, repeats=3, checkpointing_steps=6) == 0
    assert (tmp_path / "checkpoint-6").is_dir()  # 4 photos thrice, 2 a step
    assert not list(tmp_path.glob("checkpoint-7*"))


def test_sdxl_script_accepts_min_snr_and_adamw_but_refuses_prodigy(
    tiny_sdxl, subject, tmp_path, capsys
):
    script = DREAMBOOTH_LORA_SDXL
    flags = {"script": script, "train_batch_size": 2, "max_train_steps": 2}
    base = train(tiny_sdxl, subject, tmp_path / "a", **flags, optimizer="adamw")
    weighted = train(tiny_sdxl, subject, tmp_path / "b", **flags, snr_gamma=1.0)
    assert any(not torch.equal(base[name], weighted[name]) for name in base)
    assert run(tiny_sdxl, subject, tmp_path / "c", script=script, optimizer="prodigy") == 2
    assert "--optimizer: Input should be 'AdamW'" in capsys.readouterr().err


def test_base_model_with_another_objective_is_refused_early(tiny_sdxl, subject, tmp_path, capsys):
    model = tmp_path / "edm"
    shutil.copytree(tiny_sdxl, model)
    edm = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5}
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(edm))
    assert run(model, subject, tmp_path / "out", script=DREAMBOOTH_LORA_SDXL) == 2
    said = capsys.readouterr()
    assert "edm was trained for another objective than the one here: EDM" in said.err
    assert "EDMDPMSolverMultistepScheduler" in said.err
    assert "training starts" not in said.out
    assert not (tmp_path / "out" / ".dreambooth").exists()


@pytest.mark.parametrize(
    ("every", "per_epoch", "last", "due"),
    [
        (50, 3, 2, [2]),  # the first epoch is cut short: at the end, once
        (50, 1, 120, [1, 51, 101, 120]),
        (2, 2, 8, [2, 6, 8]),
        (1, 2, 6, [2, 4, 6]),
        (1, 1, 3, [1, 2, 3]),
    ],
)
def test_validation_is_due_after_first_nth_and_last_epoch(every, per_epoch, last, due):
    is_due = after_epochs(every, steps_per_epoch=per_epoch, last=last)
    assert [step for step in range(1, last + 1) if is_due(step)] == due


def test_short_run_validates_at_its_end_without_changing_the_training(tiny_sd, subject, tmp_path):
    """Dropout draws from the generator that pictures could have moved."""
    flags = {"max_train_steps": 5, "lora_dropout": 0.5}
    base = train(tiny_sd, subject, tmp_path / "a", **flags)
    pictures = {"report_to": "tensorboard", "validation_prompt": "a mug"}
    drawn = train(tiny_sd, subject, tmp_path / "b", **flags, **pictures, num_validation_images=1)
    events = EventAccumulator(str(tmp_path / "b/logs/dreambooth"), size_guidance={"images": 0})
    events.Reload()
    assert [picture.step for picture in events.Images("validation")] == [4, 5]
    assert all(torch.equal(base[name], drawn[name]) for name in base)


def test_validation_runs_by_epochs_and_in_half_precision(tiny_sd, subject, tmp_path):
    flags = {
        "script": DREAMBOOTH_LORA, "report_to": "tensorboard", "logging_dir": "curves",
        "validation_prompt": "a mug", "validation_epochs": 2, "num_validation_images": 1,
        "train_batch_size": 2, "max_train_steps": 8, "mixed_precision": "bf16",
    }  # fmt: skip
    assert run(tiny_sd, subject, tmp_path, **flags, learning_rate=1e-2) == 0
    events = EventAccumulator(str(tmp_path / "curves" / "dreambooth"), size_guidance={"images": 0})
    events.Reload()
    pictures = events.Images("validation")
    assert [picture.step for picture in pictures] == [2, 6, 8]
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string


def test_validation_scheduler_changes_the_images(tiny_sd, subject, tmp_path):
    drawn = []
    for name in ("DPMSolverMultistepScheduler", "DDPMScheduler"):
        flags = {
            "script": DREAMBOOTH, "report_to": "all", "validation_prompt": "a mug",
            "validation_steps": 1, "num_validation_images": 1, "max_train_steps": 1,
            "validation_scheduler": name,
        }  # fmt: skip
        assert run(tiny_sd, subject, tmp_path / name, **flags) == 0
        events = EventAccumulator(str(tmp_path / name / "logs/dreambooth"))
        events.Reload()
        drawn.append(events.Images("validation")[0].encoded_image_string)
    assert drawn[0] != drawn[1]
