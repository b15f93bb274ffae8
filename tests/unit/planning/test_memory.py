"""Predicted memory, against shapes that are known and steps that were traced."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.planning import plan
from dreambooth_core.planning.memory import MIB, predict
from dreambooth_core.planning.shapes import shapes_of

ROOT = Path(__file__).parents[3]
TRACED = json.loads((ROOT / "benchmarks" / "results" / "memory-traced.json").read_bytes())


def preset(name: str) -> config.Settings:
    return config.load_settings(ROOT / "presets" / f"{name}.yaml")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("CompVis/stable-diffusion-v1-4", 859_520_964),
        ("stabilityai/stable-diffusion-xl-base-1.0", 2_567_463_684),
    ],
)
def test_the_tables_hold_as_many_parameters_as_the_published_weights(name, parameters):
    model = shapes_of(name, None)
    assert model is not None
    assert model.num_parameters == parameters


def test_the_headers_of_a_models_files_give_the_shapes_of_the_table():
    from_files = shapes_of("assets/pocket-sd", ROOT / "assets" / "pocket-sd")
    assert from_files is not None
    assert from_files.architecture == "pocket"
    assert from_files.num_parameters == 5_708_424


def test_adapters_of_rank_4_on_sd_1_4s_attention_have_797184_parameters():
    """The number that diffusers' own LoRA of rank 4 has for SD 1.x (3.2 MB in fp32)."""
    model = shapes_of("CompVis/stable-diffusion-v1-4", None)
    lora = preset("sd14-lora").train.lora
    assert model is not None
    assert lora is not None
    assert sum(math.prod(shape) for shape in model.adapters(lora)) == 797_184


def test_weights_gradients_and_moments_of_sd_1_4_are_16_bytes_a_parameter_in_fp32():
    model = shapes_of("CompVis/stable-diffusion-v1-4", None)
    settings = preset("sd14-16gb")
    train = settings.train.model_copy(update={"use_8bit_adam": False})
    assert model is not None
    found = predict(model, train, settings.data, with_prior=True)
    held = found.weights + found.gradients + found.optimizer
    assert held == pytest.approx(16 * 859_520_964 / MIB)


@pytest.mark.parametrize("row", TRACED["rows"], ids=lambda row: row["preset"])
def test_the_prediction_is_within_10_percent_of_whole_traced_updates(row):
    footprint = plan.memory_of(preset(row["preset"]), ROOT)
    assert footprint is not None
    assert footprint.peak == pytest.approx(row["peak_mib"], rel=0.1)


def test_each_smaller_card_has_a_recipe_that_needs_less():
    peaks = [
        footprint.peak
        for name in ("sd14-24gb", "sd14-16gb", "sd14-6gb")
        if (footprint := plan.memory_of(preset(name), ROOT))
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 4 * 1024


def test_the_first_preset_named_for_a_card_of_12_gib_fits_it():
    base = "CompVis/stable-diffusion-v1-4"
    found = plan.presets_that_fit(ROOT, base, have_mib=12 * 1024)
    assert found[0]["fits"] is True
    assert found[0]["peak_mib"] < 12 * 1024
    small = {row["name"]: row["fits"] for row in plan.presets_that_fit(ROOT, base, have_mib=6144)}
    assert small["sd14-6gb"] is True
    assert small["sd14-16gb"] is False


def test_planning_needs_no_torch():
    code = "import sys, dreambooth_core.planning.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
