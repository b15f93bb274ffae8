"""What each flag of train_dreambooth.py does to the weights, in trainings of one or two steps.

The other scripts' own flags are in `test_adapters.py`; what runs leave behind in `test_runs.py`.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth_core import files
from tests import tiny_models
from tests.unit.scripts.command import prior, run

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
RATE = 1e-4


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Path:
    """Four photos that no test changes."""
    return tiny_models.build_photos(tmp_path_factory.mktemp("subject") / "photos")


@pytest.fixture(scope="module")
def plain(tiny_sd, subject, tmp_path_factory) -> Path:
    """What two steps without further flags leave."""
    out = tmp_path_factory.mktemp("plain") / "out"
    assert run(tiny_sd, subject, out) == 0
    return out


def unet(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def distance(one: Path, other: Path) -> float:
    """Largest difference of a number of two U-Nets."""
    left, right = unet(one), unet(other)
    return max((left[name] - right[name]).abs().max().item() for name in left)


def test_flags_without_effect_leave_the_result_byte_identical(tiny_sd, subject, plain, tmp_path):
    flags = {
        "set_grads_to_none": True, "pre_compute_text_embeddings": True, "local_rank": 0,
        "dataloader_num_workers": 2, "tokenizer_name": tiny_sd / "tokenizer",
    }  # fmt: skip
    assert run(tiny_sd, subject, tmp_path / "out", **flags) == 0
    assert files.tree_hashes(tmp_path / "out") == files.tree_hashes(plain)


def test_precomputed_embeddings_exclude_training_the_text_encoder(
    tiny_sd, subject, tmp_path, capsys
):
    flags = {"pre_compute_text_embeddings": True, "train_text_encoder": True}
    assert run(tiny_sd, subject, tmp_path / "out", **flags) == 2
    assert "--pre_compute_text_embeddings: not possible with --train_text_encoder" in (
        capsys.readouterr().err
    )


def test_tokenizer_name_tokenizes_the_prompt(tiny_sd, subject, plain, tmp_path):
    """One that gives two words each other's numbers, and a prompt with these words exchanged."""
    other = tmp_path / "tokenizer"
    shutil.copytree(tiny_sd / "tokenizer", other)
    text = json.loads((other / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["photo</w>"], vocabulary["mug</w>"] = vocabulary["mug</w>"], vocabulary["photo</w>"]
    (other / "tokenizer.json").write_text(json.dumps(text))
    flags = {"tokenizer_name": other, "instance_prompt": "a mug of sks photo"}
    assert run(tiny_sd, subject, tmp_path / "out", **flags) == 0
    assert files.tree_hashes(tmp_path / "out") == files.tree_hashes(plain)


def test_prompt_and_resolution_change_the_training(tiny_sd, subject, plain, tmp_path):
    for flags in ({"instance_prompt": "a photo of sks dog"}, {"resolution": 32}):
        out = tmp_path / next(iter(flags))
        assert run(tiny_sd, subject, out, **flags) == 0
        assert distance(out, plain) > RATE / 10


def test_center_crop_drops_the_borders_and_random_crops_keep_them(tiny_sd, tmp_path):
    """Two sets of 128 x 64 photos that differ outside their middle 64 x 64 only."""
    squares = sorted(tiny_models.build_photos(tmp_path / "squares", side=64).iterdir())
    for name, noise in (("one", 90), ("other", 40)):
        (tmp_path / name).mkdir()
        for path in squares:
            wide = Image.effect_noise((128, 64), noise).convert("RGB")
            wide.paste(Image.open(path), (32, 0))
            wide.save(tmp_path / name / path.name)
        assert run(tiny_sd, tmp_path / name, tmp_path / f"{name}-middle", center_crop=True) == 0
        assert run(tiny_sd, tmp_path / name, tmp_path / f"{name}-random") == 0
    assert distance(tmp_path / "one-middle", tmp_path / "other-middle") == 0
    assert distance(tmp_path / "one-random", tmp_path / "other-random") > RATE / 10


def test_weight_decay_shrinks_every_weight(tiny_sd, subject, tmp_path):
    """AdamW: w' = w - rate * decay * w - rate * step, Loshchilov and Hutter 2019."""
    flags = {"max_train_steps": 1}
    assert run(tiny_sd, subject, tmp_path / "none", **flags, adam_weight_decay=0.0) == 0
    assert run(tiny_sd, subject, tmp_path / "half", **flags, adam_weight_decay=0.5) == 0
    base, none, half = (unet(f) for f in (tiny_sd, tmp_path / "none", tmp_path / "half"))
    for name in base:
        assert torch.allclose(none[name] - half[name], RATE * 0.5 * base[name], atol=1e-7)


@pytest.mark.parametrize(
    "flags",
    [
        {"adam_beta1": 0.5}, {"adam_beta2": 0.5}, {"adam_epsilon": 1e-2},
        {"max_grad_norm": 1e-8}, {"snr_gamma": 5.0}, {"offset_noise": True},
    ],
    ids=lambda flags: next(iter(flags)),
)  # fmt: skip
def test_each_flag_of_optimizer_and_loss_changes_the_weights(
    flags, tiny_sd, subject, plain, tmp_path
):
    assert run(tiny_sd, subject, tmp_path / "out", **flags) == 0
    assert distance(tmp_path / "out", plain) > RATE / 10


def test_checkpointing_and_accumulation_change_only_rounding(tiny_sd, subject, tmp_path):
    alone, recomputed, summed = (tmp_path / name for name in ("alone", "recomputed", "summed"))
    assert run(tiny_sd, subject, alone, train_batch_size=2, max_train_steps=1) == 0
    flags = {"train_batch_size": 2, "max_train_steps": 1, "gradient_checkpointing": True}
    assert run(tiny_sd, subject, recomputed, **flags) == 0
    flags = {"gradient_accumulation_steps": 2, "max_train_steps": 1, "checkpointing_steps": 1}
    assert run(tiny_sd, subject, summed, **flags) == 0
    assert distance(alone, recomputed) < RATE / 100
    assert median_distance(alone, summed) < RATE / 100


def median_distance(one: Path, other: Path) -> float:
    left, right = unet(one), unet(other)
    return torch.cat([(left[n] - right[n]).abs().flatten() for n in left]).median().item()


def test_prior_loss_weight_0_equals_no_prior(tiny_sd, subject, plain, tmp_path):
    folder = tmp_path / "class"
    for name, weight in (("none", 0.0), ("full", 1.0)):
        flags = prior(folder, 2, prior_loss_weight=weight)
        assert run(tiny_sd, subject, tmp_path / name, **flags) == 0
    assert median_distance(tmp_path / "none", plain) < RATE / 100
    assert median_distance(tmp_path / "full", plain) > RATE / 10


def test_half_precision_class_images_form_another_set(tiny_sd, subject, tmp_path):
    made = []
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        flags = prior(folder, 1, prior_generation_precision=precision, max_train_steps=1)
        assert run(tiny_sd, subject, tmp_path / f"{precision}-out", **flags) == 0
        made += list(folder.iterdir())
    assert made[0].name[6:] != made[1].name[6:]
    assert files.sha256_file(made[0]) != files.sha256_file(made[1])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"lr_scheduler": "polynomial", "lr_power": 2.0}, [1.0, 9 / 16, 1 / 4, 1 / 16]),
        ({"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2}, [1.0, 0.5, 1.0, 0.5]),
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 2}, [0.0, 0.5, 1.0, 1.0]),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 0}, [1.0, 0.75, 0.5, 0.25]),
    ],
    ids=["lr_power", "lr_num_cycles", "lr_warmup_steps", "lr_scheduler"],
)
def test_schedules_give_the_rates_of_their_formulas(flags, expected, tiny_sd, subject, tmp_path):
    flags = {"lr_warmup_steps": 0, "max_train_steps": 4, "checkpointing_steps": 4, **flags}
    assert run(tiny_sd, subject, tmp_path / "out", **flags) == 0
    with (tmp_path / "out/checkpoint-4/training_state/metrics.csv").open() as table:
        rates = [float(row["learning_rate"]) / RATE for row in csv.DictReader(table)]
    assert rates == pytest.approx(expected, abs=1e-3)


def test_bf16_keeps_fp32_weights_and_fp16_needs_a_gpu(tiny_sd, subject, plain, tmp_path, capsys):
    assert run(tiny_sd, subject, tmp_path / "bf16", mixed_precision="bf16") == 0
    assert {tensor.dtype for tensor in unet(tmp_path / "bf16").values()} == {torch.float32}
    assert distance(tmp_path / "bf16", plain) > RATE / 10
    if not torch.cuda.is_available():
        assert run(tiny_sd, subject, tmp_path / "fp16", mixed_precision="fp16") == 2
        assert "--mixed_precision: fp16 needs a GPU" in capsys.readouterr().err


def test_allow_tf32_allows_tf32(tiny_sd, subject, tmp_path):
    for name, flags in (("on", {"allow_tf32": True}), ("off", {})):
        assert run(tiny_sd, subject, tmp_path / name, max_train_steps=1, **flags) == 0
        assert torch.backends.cuda.matmul.allow_tf32 is (name == "on")


def test_result_without_text_encoder_loads_with_a_separate_one(tiny_sd, subject, tmp_path):
    out = tmp_path / "out"
    assert run(tiny_sd, subject, out, max_train_steps=1, skip_save_text_encoder=True) == 0
    assert not (out / "text_encoder").exists()
    whole = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe = StableDiffusionPipeline.from_pretrained(out, text_encoder=whole.text_encoder)
    assert pipe("photo", num_inference_steps=1).images[0].size == (64, 64)


def test_variant_is_loaded_if_plain_weights_are_missing(tiny_sd, subject, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(tiny_sd, model)
    for path in model.rglob("*.safetensors"):
        half = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(half, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()
    assert run(model, subject, tmp_path / "out", max_train_steps=1, variant="fp16") == 0
    before = load_file(model / WEIGHTS.replace(".safe", ".fp16.safe"))["conv_in.weight"]
    moved = unet(tmp_path / "out")["conv_in.weight"] - before.float()
    assert 0 < moved.abs().max().item() < 2 * RATE
    assert run(model, subject, tmp_path / "none", max_train_steps=1) == 2
    assert "variant" in capsys.readouterr().err


def test_a_revision_names_the_commit_of_a_hub_id(tiny_sd, subject, plain, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v2").write_text(commit)
    shutil.copytree(tiny_sd, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub")
    )
    assert run("owner/tiny", subject, tmp_path / "out", revision="v2") == 0
    assert distance(tmp_path / "out", plain) == 0
    assert run("owner/tiny", subject, tmp_path / "none", revision="v3") == 2
