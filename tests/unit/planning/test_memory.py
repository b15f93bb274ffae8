"""Predicted memory, against known shapes and measured runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from dreambooth_core.planning import fit
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
def test_shape_tables_match_parameter_counts_of_published_weights(name, unet, text):
    model = shapes_of(name, None)
    assert model is not None
    assert count(model.unet) == unet
    assert count(model.text) == text


def test_shapes_from_file_headers_match_parameter_counts():
    from_files = shapes_of("assets/pocket-sd", ROOT / "assets" / "pocket-sd")
    assert from_files is not None
    assert from_files.architecture == "pocket"
    assert count(from_files.unet) == 5_708_424
    assert count(from_files.text) == 680_704


def test_rank_4_adapters_of_sd14_have_797184_parameters():
    """As many as diffusers' LoRA of rank 4 for SD 1.x (3.2 MB in fp32)."""
    model = shapes_of("CompVis/stable-diffusion-v1-4", None)
    assert model is not None
    trained = model.trained(preset("sd14-lora").train)
    assert sum(map(math.prod, trained)) == 797_184


def test_unknown_adapter_layer_is_refused_by_name():
    model = shapes_of("CompVis/stable-diffusion-v1-4", None)
    settings = preset("sd14-lora")
    assert settings.train.lora is not None
    lora = settings.train.lora.model_copy(update={"lora_layers": ("to_q", "to_kk", "nothing")})
    assert model is not None
    with pytest.raises(SettingsError, match=r"lora_layers: no layer.*found: to_kk, nothing"):
        model.trained(settings.train.model_copy(update={"lora": lora}))


def test_fp32_adamw_state_of_sd14_takes_16_bytes_per_parameter():
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
def test_prediction_is_within_8_percent_of_measured_peak(file, row):
    """benchmarks/memory.py measures the peaks of complete updates by the trainer."""
    assert row["predicted_mib"] == pytest.approx(row["peak_mib"], rel=0.08)


def test_measured_table_has_predictions_of_this_code():
    """Otherwise the measured table does not validate the current predictions."""
    row = next(row for file, row in MEASURED if row["recipe"] == "fp32, batch 4")
    footprint = fit.memory_of(preset("pocket"), ROOT, kind="cpu")
    assert footprint is not None
    assert round(footprint.peak, 1) == row["predicted_mib"]


def test_kept_gradients_do_not_add_to_activation_peak_in_full():
    """SD 1.4 in bf16, checkpointing, 2 rows: 537 MiB, and 1,910 with 1,639 of gradients, not 2,177.

    When most gradients exist, only the activations of the first blocks are still in memory. With
    fused updates (450 for the largest weight) the peak is 707, not 987.
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


def test_autocast_takes_more_memory_on_gpu_for_fp32_norms():
    settings = preset("sd14-lora")
    gpu, cpu = (fit.memory_of(settings, ROOT, kind=kind) for kind in ("gpu", "cpu"))
    assert gpu is not None
    assert cpu is not None
    assert gpu.peak - cpu.peak == pytest.approx(522.6 - 462.1, abs=0.1)


def test_compiled_blocks_get_only_a_lower_bound():
    """Their passes are not traced, so only weights, moments and gradients count."""
    settings = preset("pocket")
    train = settings.train.model_copy(update={"compile_blocks": True})
    model = shapes_of("assets/pocket-sd", ROOT / "assets" / "pocket-sd")
    assert model is not None
    found = predict(model, train, settings.data, with_prior=True, kind="cpu")
    assert found.passes is None
    assert found.peak == pytest.approx(16 * 5_708_424 / MIB)


def test_fused_8_bit_update_on_cpu_takes_12_more_bytes_per_value():
    """bitsandbytes converts both moments to fp32: 28 bytes per value instead of 16."""
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


def test_accumulation_keeps_all_gradients_with_the_activations():
    """sd14-16gb has two micro-steps: 2,074 MiB of a pass, plus 3,279 of gradients."""
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
def test_dora_and_dropout_of_adapters_take_extra_memory(name, dora, dropout):
    """Without checkpointing, because with it a residual block sets SDXL's peak on a GPU."""
    settings = preset(name)
    train = settings.train.model_copy(update={"method": "lora", "gradient_checkpointing": False})
    assert train.lora is not None
    own = train.lora.model_copy(update={"use_dora": dora, "lora_dropout": dropout})
    plain, other = (
        fit.memory_of(settings.model_copy(update={"train": each}), ROOT, kind="gpu")
        for each in (train, train.model_copy(update={"lora": own}))
    )
    assert plain is not None
    assert other is not None
    assert plain.passes is not None
    assert other.passes is not None
    assert other.passes > 1.05 * plain.passes
    assert (other.weights > plain.weights) is dora  # DoRA's magnitudes


@pytest.mark.parametrize(
    ("name", "card_gib"),
    [("sd14-24gb", 24), ("sd14-16gb", 16), ("sd14-12gb", 12), ("sd14-6gb", 4)],
)
def test_preset_fits_the_gpu_in_its_name(name, card_gib):
    """sd14-6gb even fits a GPU of 4 GiB."""
    footprint = fit.memory_of(preset(name), ROOT, kind="gpu")
    assert footprint is not None
    assert footprint.peak + CONTEXT_MIB < card_gib * 1024


def test_first_suggested_preset_fits_the_gpu():
    base = "CompVis/stable-diffusion-v1-4"
    found = fit.presets_that_fit(ROOT, base, have_mib=12 * 1024, kind="gpu")
    assert found[0]["fits"] is True
    assert found[0]["peak_mib"] < 12 * 1024
    found = fit.presets_that_fit(ROOT, base, have_mib=6144, kind="gpu")
    small = {row["name"]: row["fits"] for row in found}
    assert small["sd14-6gb"] is True
    assert small["sd14-16gb"] is False


def test_presets_of_every_model_are_listed_with_their_verdict():
    found = fit.presets_that_fit(ROOT, "assets/pocket-sd", have_mib=6144, kind="gpu")
    assert {row["name"] for row in found} == {p.stem for p in (ROOT / "presets").glob("*.yaml")}
    assert found[0]["name"] == "pocket"
    others = [row["fits"] for row in found[1:]]
    assert others == sorted(others, key=lambda fits: fits is not True)
    models = {row["name"]: row["base_model"] for row in found}
    assert models["sdxl-lora"] == "stabilityai/stable-diffusion-xl-base-1.0"


def test_planning_needs_no_torch():
    code = "import sys, dreambooth_core.planning.fit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("base", "have_gib", "kind", "wanted"),
    [
        ("assets/pocket-sd", 16, "cpu", "pocket"),
        ("assets/pocket-sd", 12, "gpu", "sd14-12gb"),
        ("assets/pocket-sd", 24, "gpu", "sd14-24gb"),
        ("assets/pocket-sd", 8, "gpu", "sd14-6gb"),
        ("CompVis/stable-diffusion-v1-4", 6, "gpu", "sd14-6gb"),
        ("stabilityai/stable-diffusion-xl-base-1.0", 80, "gpu", "sdxl-lora"),
        ("assets/pocket-sd", 1, "gpu", None),
    ],
)
def test_recommended_preset_trains_the_most_that_fits(base, have_gib, kind, wanted):
    have_mib = have_gib * 1024
    presets = fit.presets_that_fit(ROOT, base, have_mib=have_mib, kind=kind)
    found = fit.recommended(presets, base, have_mib=have_mib, kind=kind)
    assert (found and found["name"]) == wanted
    assert found is None or found["why"].endswith(".")
