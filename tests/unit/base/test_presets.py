"""The presets: complete files, of which each can be switched from full to LoRA by one word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dreambooth_core import config
from tests.presets import view_of

ROOT = Path(__file__).parents[3]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def test_there_is_a_preset_for_every_card_and_method_that_the_documents_name():
    cards = {"sd14-24gb", "sd14-16gb", "sd14-12gb", "sd14-8gb", "sd14-6gb"}
    assert {path.stem for path in PRESETS} == {"pocket", *cards, "sd14-lora", "sdxl-lora"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_becomes_the_other_method_by_one_word(path, tmp_path):
    text = path.read_text()
    view = view_of(tmp_path, text)
    other = {"full": "lora", "lora": "full"}[view.train.method]
    switched = view_of(tmp_path, re.sub(r"method: \w+", f"method: {other}", text))
    assert switched.train.method == other
    assert view.train.lora is not None
    rates = {view.train.method: view.train.peak_rate, other: switched.train.peak_rate}
    assert rates == {"full": view.train.learning_rate, "lora": view.train.lora.learning_rate}


def test_the_settings_of_adapters_do_not_count_while_whole_networks_are_trained(tmp_path):
    text = (ROOT / "presets" / "pocket.yaml").read_text()
    one = config.settings_of(view_of(tmp_path, text), "train")
    other = config.settings_of(view_of(tmp_path, text.replace("rank: 8", "rank: 4")), "train")
    assert one == other


def test_the_preset_for_6_gb_offloads_nothing_and_keeps_no_second_copy_of_weights_or_gradients():
    train = config.load_settings(ROOT / "presets" / "sd14-6gb.yaml").train
    assert (train.method, train.accelerate_config, train.fused_backward) == ("full", None, True)
    assert (train.weight_dtype, train.optimizer) == ("bf16", "adafactor")
