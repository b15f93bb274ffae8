"""The whole recipe from an empty folder, at toy sizes: train every part, pack, load, measure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tools.pocket.bundle import from_assets
from tools.pocket.commands import as_table, measure, open_workshop, pretrain_parts
from tools.pocket.pack import pack, write_cards
from tools.pocket.pipeline import sample
from tools.pocket.pretrain import PARTS, Workshop
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


def _workshop(state: Path) -> Workshop:
    return open_workshop(TOY, state=state, device="cpu", threads=1, say=lambda _: None)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workshop, Path]:
    root = tmp_path_factory.mktemp("recipe")
    shop = _workshop(root / "state")
    pretrain_parts(shop, part="all", until=None)
    pack(shop, assets=root / "assets")
    return shop, root / "assets"


def test_training_all_parts_reaches_the_last_step_of_each_and_doing_it_again_changes_nothing(
    packed: tuple[Workshop, Path],
) -> None:
    shop, _ = packed
    assert [shop.open(name).step for name in PARTS] == [2] * len(PARTS)
    before = {path.name: path.stat().st_mtime_ns for path in shop.state.glob("*.pt")}
    pretrain_parts(shop, part="all", until=None)
    assert {path.name: path.stat().st_mtime_ns for path in shop.state.glob("*.pt")} == before


def test_the_same_recipe_in_another_folder_gives_the_same_weights_to_the_bit(
    packed: tuple[Workshop, Path], tmp_path: Path
) -> None:
    shop, _ = packed
    again = _workshop(tmp_path)
    pretrain_parts(again, part="all", until=None)
    for name in PARTS:
        first, second = shop.trained(name).state_dict(), again.trained(name).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_packed_weights_are_those_of_the_state_rounded_to_fp16(
    packed: tuple[Workshop, Path],
) -> None:
    shop, assets = packed
    kept = from_assets(shop, assets=assets).pipeline.unet.state_dict()
    trained = shop.trained("unet").state_dict()
    assert all(torch.equal(kept[key], trained[key].half().float()) for key in trained)


def test_a_picture_depends_on_its_own_number_and_not_on_the_size_of_the_batch(
    packed: tuple[Workshop, Path],
) -> None:
    shop, assets = packed
    pipeline = from_assets(shop, assets=assets).pipeline
    prompts = ["a mug", "a car", "a cat"]
    together = sample(pipeline, prompts, seed=3, steps=2)
    in_pairs = sample(pipeline, prompts, seed=3, steps=2, batch=2)
    assert together.shape == (3, 3, 64, 64)
    assert (together - in_pairs).abs().max() < 1e-2


def test_figures_of_untrained_models_miss_their_bars_and_the_cards_say_so(
    packed: tuple[Workshop, Path],
) -> None:
    shop, assets = packed
    models = from_assets(shop, assets=assets)
    measured = measure(models, part="vae", assets=assets, num_samples=4, say=lambda _: None)
    assert measured["vae_psnr"]["holds"] is False
    assert "MISSED" in as_table(measured)
    write_cards(assets, measured=measured)
    assert "**no**" in (assets / "pocket-sd" / "README.md").read_text(encoding="utf-8")
    kept = json.loads((assets / "measured.json").read_text(encoding="utf-8"))
    assert kept["vae_psnr"] == measured["vae_psnr"]
