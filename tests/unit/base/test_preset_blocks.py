"""The presets have the values of the guide's code blocks."""

from __future__ import annotations

import re
import shlex
import string
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import config
from dreambooth_core.scripts.flags import DREAMBOOTH, ScriptFlags
from dreambooth_core.scripts.parsing import parse
from tests.contract.guide_blocks import block

ROOT = Path(__file__).parents[3]
BLOCKS = {
    "sd14-24gb": "Text encoder and U-Net",
    "sd14-16gb": "16 GB",
    "sd14-12gb": "12 GB",
    "sd14-8gb": "8 GB",
}
NOT_THE_BLOCKS = {
    # The presets choose their own checkpoints and seed.
    *("checkpointing_steps", "checkpoints_total_limit", "seed"),
    # The presets use PyTorch's SDPA, because xFormers is a separate package (docs/memory.md).
    "enable_xformers_memory_efficient_attention",
}


def flags_of(title: str) -> ScriptFlags:
    """The flags of a block, parsed by the script's parser."""
    text = block(title).replace(
        "--use_8bit_adam\n", "--use_8bit_adam \\\n"
    )  # the block lacks this backslash
    exports = dict(re.findall(r'export (\w+)="(.*)"', text))
    command = re.sub(r"\\\n", " ", text).partition("train_dreambooth.py")[2]
    return parse(DREAMBOOTH, shlex.split(string.Template(command).substitute(exports)))


def sections_of(settings: config.Settings) -> dict[str, Any]:
    """The fields of the sections that have flags, by name."""
    assert settings.prior is not None
    parts = (settings.base_model, settings.data, settings.prior, settings.train)
    return {name: getattr(part, name) for part in parts for name in type(part).model_fields}


@pytest.mark.parametrize(("name", "title"), BLOCKS.items())
def test_preset_has_its_blocks_values_and_script_defaults(name, title):
    flags = flags_of(title)
    given = {n: v for n, v in flags.model_dump().items() if n not in NOT_THE_BLOCKS}
    given["offset_noise"] = 0.1 if given["offset_noise"] else 0.0
    if "mixed_precision" not in flags.model_fields_set:
        del given["mixed_precision"]  # comes from `accelerate config`
    if "sample_batch_size" not in flags.model_fields_set:
        del given["sample_batch_size"]  # depends on the GPU's memory
    preset = sections_of(config.load_settings(ROOT / "presets" / f"{name}.yaml"))
    both = given.keys() & preset.keys()
    assert {n: preset[n] for n in both} == {n: given[n] for n in both}
    assert {
        *("learning_rate", "max_train_steps", "gradient_accumulation_steps", "use_8bit_adam"),
        *("gradient_checkpointing", "train_text_encoder", "lr_scheduler", "lr_warmup_steps"),
        *("train_batch_size", "num_class_images", "prior_loss_weight", "resolution"),
    } <= both


def test_blocks_differ_where_the_guide_does():
    """Checks that the blocks are read correctly."""
    read = {name: flags_of(title) for name, title in BLOCKS.items()}
    assert {n: f.gradient_accumulation_steps for n, f in read.items() if n != "sd14-16gb"} == {
        "sd14-24gb": 1, "sd14-12gb": 1, "sd14-8gb": 1,
    }  # fmt: skip
    assert read["sd14-16gb"].gradient_accumulation_steps == 2
    assert [n for n, f in read.items() if f.learning_rate == 2e-6] == ["sd14-24gb", "sd14-12gb"]
    assert [n for n, f in read.items() if not f.use_8bit_adam] == ["sd14-8gb"]
    assert read["sd14-8gb"].mixed_precision == "fp16"
