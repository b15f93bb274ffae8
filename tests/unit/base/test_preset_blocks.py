"""The presets beside the seed document's blocks: what a block says, its preset says too."""

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
    # Of the flags' defaults: how often is saved and how much is kept is the preset's own.
    *("checkpointing_steps", "checkpoints_total_limit", "seed"),
    # torch's SDPA stands in for xFormers, which has to be installed apart (docs/memory.md).
    "enable_xformers_memory_efficient_attention",
}


def flags_of(title: str) -> ScriptFlags:
    """The flags of a block, as the script itself reads them."""
    text = block(title).replace("--use_8bit_adam\n", "--use_8bit_adam \\\n")  # its backslash lacks
    exports = dict(re.findall(r'export (\w+)="(.*)"', text))
    command = re.sub(r"\\\n", " ", text).partition("train_dreambooth.py")[2]
    return parse(DREAMBOOTH, shlex.split(string.Template(command).substitute(exports)))


def sections_of(settings: config.Settings) -> dict[str, Any]:
    """The fields of the sections that flags speak of, by their names."""
    assert settings.prior is not None
    parts = (settings.base_model, settings.data, settings.prior, settings.train)
    return {name: getattr(part, name) for part in parts for name in type(part).model_fields}


@pytest.mark.parametrize(("name", "title"), BLOCKS.items())
def test_a_preset_has_every_value_of_its_block_and_the_scripts_default_of_the_rest(name, title):
    flags = flags_of(title)
    given = {n: v for n, v in flags.model_dump().items() if n not in NOT_THE_BLOCKS}
    given["offset_noise"] = 0.1 if given["offset_noise"] else 0.0
    if "mixed_precision" not in flags.model_fields_set:
        del given["mixed_precision"]  # that of `accelerate config`
    if "sample_batch_size" not in flags.model_fields_set:
        del given["sample_batch_size"]  # how many class images the card draws at once
    preset = sections_of(config.load_settings(ROOT / "presets" / f"{name}.yaml"))
    both = given.keys() & preset.keys()
    assert {n: preset[n] for n in both} == {n: given[n] for n in both}
    assert {
        *("learning_rate", "max_train_steps", "gradient_accumulation_steps", "use_8bit_adam"),
        *("gradient_checkpointing", "train_text_encoder", "lr_scheduler", "lr_warmup_steps"),
        *("train_batch_size", "num_class_images", "prior_loss_weight", "resolution"),
    } <= both


def test_the_blocks_differ_where_the_seed_document_says_so():
    """Else a block read wrongly would go unnoticed."""
    read = {name: flags_of(title) for name, title in BLOCKS.items()}
    assert {n: f.gradient_accumulation_steps for n, f in read.items() if n != "sd14-16gb"} == {
        "sd14-24gb": 1, "sd14-12gb": 1, "sd14-8gb": 1,
    }  # fmt: skip
    assert read["sd14-16gb"].gradient_accumulation_steps == 2
    assert [n for n, f in read.items() if f.learning_rate == 2e-6] == ["sd14-24gb", "sd14-12gb"]
    assert [n for n, f in read.items() if not f.use_8bit_adam] == ["sd14-8gb"]
    assert read["sd14-8gb"].mixed_precision == "fp16"
