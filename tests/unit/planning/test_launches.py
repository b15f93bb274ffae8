"""The effect of the launch on predicted memory, by arithmetic; no launch was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import config
from dreambooth_core.config import Settings
from dreambooth_core.errors import SettingsError
from dreambooth_core.planning import fit
from dreambooth_core.planning.memory import MIB, Footprint, Launch, launch_of

ROOT = Path(__file__).parents[3]
SDXL = 2_567_463_684
"""Parameters of SDXL's U-Net."""


def preset(name: str, **train: Any) -> Settings:
    """A preset with changed training settings."""
    settings = config.load_settings(ROOT / "presets" / f"{name}.yaml")
    return settings.model_copy(update={"train": settings.train.model_copy(update=train)})


def footprint(settings: Settings) -> Footprint:
    found = fit.memory_of(settings, ROOT, kind="gpu")
    assert found is not None
    return found


def whole_sdxl(**train: Any) -> Settings:
    """Full fine-tuning of SDXL's U-Net in bf16 with plain AdamW."""
    return preset("sdxl-lora", **{"method": "full", "mixed_precision": "bf16", **train})


SPLIT = {"accelerate_config": "fsdp2-sdxl", "num_processes": 8}


def test_fsdp2_divides_weights_gradients_and_moments_by_processes():
    """16 bytes per parameter, 39 GiB, on eight GPUs."""
    found = footprint(whole_sdxl(**SPLIT))
    held = found.weights + found.gradients + found.optimizer
    assert held == pytest.approx(16 * SDXL / 8 / MIB)
    assert found.passes is not None
    assert found.peak > found.weights + found.optimizer + found.passes - 1


def test_fsdp2_peak_is_a_lower_bound_without_verdict():
    """Gathered blocks are not counted, so the peak is a lower bound."""
    alone, split = (
        fit.describe(footprint(settings), have_mib=24 * 1024)
        for settings in (whole_sdxl(), whole_sdxl(**SPLIT))
    )
    assert alone["fits"] is False
    assert split["fits"] is None
    assert split["peak_mib"] < alone["peak_mib"] / 3
    assert fit.describe(footprint(whole_sdxl(**SPLIT)), have_mib=4096)["fits"] is False


def test_ddp_adds_a_copy_of_all_gradients():
    one, two = (footprint(preset("sd14-16gb", num_processes=n)) for n in (1, 2))
    assert two.exchange == pytest.approx(4 * 859_520_964 / MIB)
    assert two.peak - one.peak == pytest.approx(two.exchange)
    assert one.exchange == 0


DEEPSPEED = {"use_8bit_adam": False, "num_processes": 2, "mixed_precision": "no"}


def test_offloading_follows_content_of_deepspeed_file(tmp_path):
    train = preset("pocket", **DEEPSPEED, accelerate_config="deepspeed-two-cpus").train
    assert launch_of(train, ROOT) == Launch("deepspeed", 2, offloads=True)

    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    own = tmp_path / "infra" / "deepspeed" / "zero2-cpu.json"
    content = json.loads(own.read_bytes())
    del content["zero_optimization"]["offload_optimizer"]
    own.write_text(json.dumps(content))
    assert launch_of(train, tmp_path) == Launch("deepspeed", 2, offloads=False)


def test_deepspeed_gets_no_prediction_and_no_verdict():
    settings = preset("sd14-16gb", **DEEPSPEED, accelerate_config="deepspeed-two-cpus")
    found = fit.memory_of(settings, ROOT, kind="gpu")
    assert found is None
    memory = fit.describe(found, have_mib=1024)
    assert (memory["peak_mib"], memory["fits"]) == (None, None)


def test_missing_launch_file_is_refused_with_available_ones():
    settings = preset("sd14-16gb", accelerate_config="fsdp2-nowhere", num_processes=2)
    with pytest.raises(SettingsError, match="fsdp2-sdxl"):
        fit.memory_of(settings, ROOT, kind="gpu")


def test_offloading_preset_is_listed_without_verdict():
    found = fit.presets_that_fit(ROOT, "CompVis/stable-diffusion-v1-4", have_mib=8192, kind="gpu")
    row = next(row for row in found if row["name"] == "sd14-8gb")
    assert (row["peak_mib"], row["fits"]) == (None, None)
