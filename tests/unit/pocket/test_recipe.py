"""The whole recipe at toy sizes: train each part, pack, load, evaluate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import AutoModel

from tools.pocket.evaluate import as_table, measure
from tools.pocket.models import load_packed
from tools.pocket.pack import pack, write_cards
from tools.pocket.pretrain import PARTS, PretrainContext, make_context, pretrain
from tools.pocket.sample import sample
from tools.pocket.settings import POCKET, PartSettings

TOY_PART = PartSettings(steps=2, batch=4, learning_rate=1e-3, warmup=1)
TOY = replace(
    POCKET,
    num_train=24,
    num_test=24,
    num_individuals=8,
    clip_width=32,
    clip_text_layers=1,
    clip_vision_layers=1,
    dino_width=32,
    dino_layers=1,
    vae_channels=(8, 8, 8, 8),
    unet_channels=(16, 16),
    **{name: TOY_PART for name in PARTS},
)


def _context(state: Path) -> PretrainContext:
    return make_context(TOY, state=state, device="cpu", threads=1, log=lambda _: None)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[PretrainContext, Path]:
    root = tmp_path_factory.mktemp("recipe")
    context = _context(root / "state")
    pretrain(context)
    pack(context, assets=root / "assets")
    return context, root / "assets"


def test_pretraining_finishes_each_part_and_a_second_run_changes_nothing(
    packed: tuple[PretrainContext, Path],
) -> None:
    context, _ = packed
    assert [context.open_run(name).step for name in PARTS] == [2] * len(PARTS)
    before = {path.name: path.stat().st_mtime_ns for path in context.state.glob("*.pt")}
    pretrain(context)
    assert {path.name: path.stat().st_mtime_ns for path in context.state.glob("*.pt")} == before


def test_packed_pipeline_and_scorers_load_in_one_dtype(
    packed: tuple[PretrainContext, Path],
) -> None:
    _, assets = packed
    pipe = StableDiffusionPipeline.from_pretrained(assets / "pocket-sd")
    models = [
        pipe.unet,
        pipe.vae,
        pipe.text_encoder,
        AutoModel.from_pretrained(assets / "pocket-clip"),
        AutoModel.from_pretrained(assets / "pocket-dino"),
    ]
    assert {model.dtype for model in models} == {torch.float32}


def test_recipe_is_deterministic(packed: tuple[PretrainContext, Path], tmp_path: Path) -> None:
    context, _ = packed
    again = _context(tmp_path)
    pretrain(again)
    for name in PARTS:
        first, second = (
            context.averaged_model(name).state_dict(),
            again.averaged_model(name).state_dict(),
        )
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_packed_weights_are_the_averages_in_fp16(packed: tuple[PretrainContext, Path]) -> None:
    context, assets = packed
    saved = load_packed(context, assets=assets).pipeline.unet.state_dict()
    trained = context.averaged_model("unet").state_dict()
    assert all(torch.equal(saved[key], trained[key].half().float()) for key in trained)


def test_sample_depends_on_its_index_but_not_on_the_batch_size(
    packed: tuple[PretrainContext, Path],
) -> None:
    context, assets = packed
    pipeline = load_packed(context, assets=assets).pipeline
    prompts = ["a mug", "a car", "a cat"]
    together = sample(pipeline, prompts, seed=3, steps=2)
    in_pairs = sample(pipeline, prompts, seed=3, steps=2, batch=2)
    assert together.shape == (3, 3, 64, 64)
    assert (together - in_pairs).abs().max() < 1e-2


def test_cards_list_missed_targets_of_untrained_models(
    packed: tuple[PretrainContext, Path],
) -> None:
    context, assets = packed
    models = load_packed(context, assets=assets)
    measured = measure(models, part="vae", assets=assets, num_samples=4, log=lambda _: None)
    assert measured["vae_psnr"]["holds"] is False
    assert "MISSED" in as_table(measured)
    write_cards(assets, measured=measured)
    assert "**no**" in (assets / "pocket-sd" / "README.md").read_text(encoding="utf-8")
    saved = json.loads((assets / "measured.json").read_text(encoding="utf-8"))
    assert saved["vae_psnr"] == measured["vae_psnr"]
