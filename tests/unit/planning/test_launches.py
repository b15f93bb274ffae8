"""What the launch of a training does to its memory, by arithmetic: nothing of it was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import config
from dreambooth_core.config import Settings
from dreambooth_core.errors import SettingsError
from dreambooth_core.planning import plan
from dreambooth_core.planning.launches import Launch, launch_of
from dreambooth_core.planning.memory import MIB, Footprint

ROOT = Path(__file__).parents[3]
SDXL = 2_567_463_684
"""Parameters of SDXL's U-Net."""


def preset(name: str, **train: Any) -> Settings:
    """A preset with other settings of the training."""
    settings = config.load_settings(ROOT / "presets" / f"{name}.yaml")
    return settings.model_copy(update={"train": settings.train.model_copy(update=train)})


def footprint(settings: Settings) -> Footprint:
    found = plan.memory_of(settings, ROOT, kind="gpu")
    assert found is not None
    return found


def whole_sdxl(**train: Any) -> Settings:
    """SDXL's whole U-Net in bf16, by plain AdamW."""
    return preset("sdxl-lora", **{"method": "full", "mixed_precision": "bf16", **train})


SPLIT = {"accelerate_config": "fsdp2-sdxl", "num_processes": 8}


def test_fsdp2_divides_weights_gradients_and_moments_by_its_processes():
    """16 bytes a parameter, 39 GiB, over eight cards."""
    found = footprint(whole_sdxl(**SPLIT))
    held = found.weights + found.gradients + found.optimizer
    assert held == pytest.approx(16 * SDXL / 8 / MIB)
    assert found.passes is not None
    assert found.peak > found.weights + found.optimizer + found.passes - 1


def test_a_training_that_fsdp2_splits_is_not_said_to_be_too_large_for_a_card_of_80_gib():
    """And not to fit either: the blocks that are whole for a moment are not counted."""
    alone, split = (
        plan.describe(footprint(settings), have_mib=24 * 1024)
        for settings in (whole_sdxl(), whole_sdxl(**SPLIT))
    )
    assert alone["fits"] is False
    assert split["fits"] is None
    assert split["peak_mib"] < alone["peak_mib"] / 3
    assert plan.describe(footprint(whole_sdxl(**SPLIT)), have_mib=4096)["fits"] is False


def test_ddp_holds_another_copy_of_all_gradients():
    one, two = (footprint(preset("sd14-16gb", num_processes=n)) for n in (1, 2))
    assert two.exchange == pytest.approx(4 * 859_520_964 / MIB)
    assert two.peak - one.peak == pytest.approx(two.exchange)
    assert one.exchange == 0


DEEPSPEED = {"use_8bit_adam": False, "num_processes": 2, "mixed_precision": "no"}


def test_the_deepspeed_file_says_whether_the_optimizer_is_offloaded_not_its_name(tmp_path):
    train = preset("pocket", **DEEPSPEED, accelerate_config="deepspeed-two-cpus").train
    assert launch_of(train, ROOT) == Launch("DeepSpeed", 2, offloads=True)

    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    own = tmp_path / "infra" / "deepspeed" / "zero2-cpu.json"
    told = json.loads(own.read_bytes())
    del told["zero_optimization"]["offload_optimizer"]
    own.write_text(json.dumps(told))
    assert launch_of(train, tmp_path) == Launch("DeepSpeed", 2, offloads=False)


def test_under_deepspeed_nothing_is_predicted_and_no_verdict_given():
    settings = preset("sd14-16gb", **DEEPSPEED, accelerate_config="deepspeed-two-cpus")
    found = plan.memory_of(settings, ROOT, kind="gpu")
    assert found is None
    told = plan.describe(found, have_mib=1024)
    assert (told["peak_mib"], told["fits"]) == (None, None)


def test_a_launch_that_could_not_be_is_told_with_the_files_that_are_there():
    settings = preset("sd14-16gb", accelerate_config="fsdp2-nowhere", num_processes=2)
    with pytest.raises(SettingsError, match="fsdp2-sdxl"):
        plan.memory_of(settings, ROOT, kind="gpu")


def test_a_preset_that_offloads_is_listed_without_a_verdict():
    found = plan.presets_that_fit(ROOT, "CompVis/stable-diffusion-v1-4", have_mib=8192, kind="gpu")
    row = next(row for row in found if row["name"] == "sd14-8gb")
    assert (row["peak_mib"], row["fits"]) == (None, None)
