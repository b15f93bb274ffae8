"""Predicted memory, against shapes that are known and runs that were measured."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from dreambooth_core.planning import plan
from dreambooth_core.planning.memory import CONTEXT_MIB, MIB, predict
from dreambooth_core.planning.shapes import Named, shapes_of

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = [
    (path.stem, row)
    for path in sorted(RESULTS.glob("memory-*.json"))
    for row in json.loads(path.read_bytes())["rows"]
]


def count(tensors: Named) -> int:
    return sum(math.prod(shape) for _, shape in tensors)


def preset(name: str) -> config.Settings:
    return config.load_settings(ROOT / "presets" / f"{name}.yaml")


@pytest.mark.parametrize(
    ("name", "unet", "text"),
    [
        ("CompVis/stable-diffusion-v1-4", 859_520_964, 123_060_480),
        ("stabilityai/stable-diffusion-xl-base-1.0", 2_567_463_684, 123_060_480 + 694_659_840),
    ],
)
def test_the_tables_hold_as_many_parameters_as_the_published_weights(name, unet, text):
    model = shapes_of(name, None)
    assert model is not None
    assert count(model.unet) == unet
    assert count(model.text) == text


def test_the_headers_of_a_models_files_give_the_shapes_of_the_table():
    from_files = shapes_of("assets/pocket-sd", ROOT / "assets" / "pocket-sd")
    assert from_files is not None
    assert from_files.architecture == "pocket"
    assert count(from_files.unet) == 5_708_424
    assert count(from_files.text) == 680_704


def test_adapters_of_rank_4_on_sd_1_4s_attention_have_797184_parameters():
    """The number that diffusers' own LoRA of rank 4 has for SD 1.x (3.2 MB in fp32)."""
    model = shapes_of("CompVis/stable-diffusion-v1-4", None)
    assert model is not None
    trained = model.trained(preset("sd14-lora").train)
    assert sum(map(math.prod, trained)) == 797_184


def test_a_layers_name_that_the_model_does_not_have_is_refused_before_anything_is_predicted():
    model = shapes_of("CompVis/stable-diffusion-v1-4", None)
    settings = preset("sd14-lora")
    assert settings.train.lora is not None
    lora = settings.train.lora.model_copy(update={"lora_layers": ("to_q", "to_kk", "nothing")})
    assert model is not None
    with pytest.raises(SettingsError, match=r"lora_layers: no layer.*found: to_kk, nothing"):
        model.trained(settings.train.model_copy(update={"lora": lora}))


def test_weights_gradients_and_moments_of_sd_1_4_are_16_bytes_a_parameter_in_fp32():
    model = shapes_of("CompVis/stable-diffusion-v1-4", None)
    settings = preset("sd14-16gb")
    train = settings.train.model_copy(update={"use_8bit_adam": False})
    assert model is not None
    found = predict(model, train, settings.data, with_prior=True, kind="gpu")
    held = found.weights + found.gradients + found.optimizer
    assert held == pytest.approx(16 * 859_520_964 / MIB)


@pytest.mark.parametrize(
    ("file", "row"), MEASURED, ids=lambda v: v if isinstance(v, str) else v["recipe"]
)
def test_the_prediction_is_within_8_percent_of_real_runs(file, row):
    """The peaks of whole updates by the trainer itself; benchmarks/memory.py writes them."""
    assert row["predicted_mib"] == pytest.approx(row["peak_mib"], rel=0.08)


def test_the_table_of_predictions_is_that_of_this_code():
    """Else the measured table would say nothing of what `plan` says now."""
    row = next(row for file, row in MEASURED if row["recipe"] == "fp32, batch 4")
    footprint = plan.memory_of(preset("pocket"), ROOT, kind="cpu")
    assert footprint is not None
    assert round(footprint.peak, 1) == row["predicted_mib"]


def test_the_lines_through_the_traced_passes_bend_where_gradients_are_kept():
    """SD 1.4 in bf16 with checkpointing, 2 rows: 537 MiB, with 1,639 of gradients 1,910, not 2,177.

    By the time that most gradients are there, only the first blocks' activations are held. With the
    updates (450 for the largest weight) it is 707, not 987.
    """
    model = shapes_of("CompVis/stable-diffusion-v1-4", None)
    settings = preset("sd14-6gb")
    freed = settings.train
    kept = freed.model_copy(update={"fused_backward": False})
    assert model is not None
    found = [
        predict(model, train, settings.data, with_prior=True, kind="gpu") for train in (freed, kept)
    ]
    assert [f.passes for f in found] == pytest.approx([707.2, 1910.3], abs=0.1)


def test_autocast_needs_more_on_a_gpu_where_it_computes_norms_in_fp32():
    settings = preset("sd14-lora")
    gpu, cpu = (plan.memory_of(settings, ROOT, kind=kind) for kind in ("gpu", "cpu"))
    assert gpu is not None
    assert cpu is not None
    assert gpu.peak - cpu.peak == pytest.approx(522.6 - 462.1, abs=0.1)


def test_compiled_blocks_are_predicted_to_take_what_is_sure_and_no_more():
    """Their passes were not traced, so the peak is a lower bound: weights, moments, gradients."""
    settings = preset("pocket")
    train = settings.train.model_copy(update={"compile_blocks": True})
    model = shapes_of("assets/pocket-sd", ROOT / "assets" / "pocket-sd")
    assert model is not None
    found = predict(model, train, settings.data, with_prior=True, kind="cpu")
    assert found.passes is None
    assert found.peak == pytest.approx(16 * 5_708_424 / MIB)


def test_a_cpus_8_bit_updates_in_the_backward_pass_take_12_bytes_more_of_the_largest_weight():
    """Both moments are widened to fp32 there: 28 bytes a number instead of 16."""
    model = shapes_of("CompVis/stable-diffusion-v1-4", None)
    settings = preset("sd14-6gb")
    own = {"optimizer": "adamw", "use_8bit_adam": True}
    train = settings.train.model_copy(update=own)
    assert model is not None
    plain, widened = (
        predict(model, t, settings.data, with_prior=True, kind="cpu").passes
        for t in (settings.train, train)
    )
    assert plain is not None
    assert widened is not None
    largest = 1280 * 2560 * 3 * 3
    assert widened - plain == pytest.approx(12 * largest / MIB)


def test_a_second_micro_step_holds_all_gradients_beside_its_activations():
    """sd14-16gb accumulates two: 2,074 MiB of a pass whose gradients are freed, and 3,279."""
    settings = preset("sd14-16gb")
    model = shapes_of("CompVis/stable-diffusion-v1-4", None)
    assert model is not None
    one = settings.train.model_copy(update={"gradient_accumulation_steps": 1})
    found = [
        predict(model, train, settings.data, with_prior=True, kind="gpu")
        for train in (one, settings.train)
    ]
    assert [f.passes for f in found] == pytest.approx([3534.9, 2073.8 + 3278.8], abs=0.1)


@pytest.mark.parametrize(("dora", "dropout"), [(True, 0.0), (False, 0.1), (True, 0.1)])
@pytest.mark.parametrize("name", ["pocket", "sd14-lora", "sdxl-lora"])
def test_dora_and_dropout_of_adapters_are_traced_as_kinds_of_their_own(name, dora, dropout):
    """Without checkpointing: with it SDXL's peak on a GPU is that of a residual block."""
    settings = preset(name)
    train = settings.train.model_copy(update={"method": "lora", "gradient_checkpointing": False})
    assert train.lora is not None
    own = train.lora.model_copy(update={"use_dora": dora, "lora_dropout": dropout})
    plain, other = (
        plan.memory_of(settings.model_copy(update={"train": each}), ROOT, kind="gpu")
        for each in (train, train.model_copy(update={"lora": own}))
    )
    assert plain is not None
    assert other is not None
    assert plain.passes is not None
    assert other.passes is not None
    assert other.passes > 1.05 * plain.passes
    assert (other.weights > plain.weights) is dora  # the lengths of the rows


@pytest.mark.parametrize(
    ("name", "card_gib"),
    [("sd14-24gb", 24), ("sd14-16gb", 16), ("sd14-12gb", 12), ("sd14-6gb", 4)],
)
def test_a_preset_fits_the_card_that_it_is_named_for(name, card_gib):
    """sd14-6gb even one of 4 GiB."""
    footprint = plan.memory_of(preset(name), ROOT, kind="gpu")
    assert footprint is not None
    assert footprint.peak + CONTEXT_MIB < card_gib * 1024


def test_the_first_preset_named_for_a_card_of_12_gib_fits_it():
    base = "CompVis/stable-diffusion-v1-4"
    found = plan.presets_that_fit(ROOT, base, have_mib=12 * 1024, kind="gpu")
    assert found[0]["fits"] is True
    assert found[0]["peak_mib"] < 12 * 1024
    found = plan.presets_that_fit(ROOT, base, have_mib=6144, kind="gpu")
    small = {row["name"]: row["fits"] for row in found}
    assert small["sd14-6gb"] is True
    assert small["sd14-16gb"] is False


def test_planning_needs_no_torch():
    code = "import sys, dreambooth_core.planning.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
