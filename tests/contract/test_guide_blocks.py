"""The guide's torch blocks run as printed, and its snippets load what they leave.

What is changed in them stands in `guide_blocks.py`; the JAX blocks are in `tests/unit/jax`.
"""

import pytest

from tests.contract.guide_blocks import (
    assert_a_checkpoint_loads,
    assert_class_images_are_made,
    assert_the_result_draws,
    assert_trained,
    block,
    launch,
)
from tests.paths import ROOT

XFORMERS = "  --enable_xformers_memory_efficient_attention \\\n"


def test_first_block_trains_and_last_snippet_generates_an_image(tmp_path, tiny_sd, photos):
    assert_the_result_draws(block("Fine-tuning"), tmp_path, tiny_sd, photos)


def test_prior_preservation_block_samples_class_images_and_trains(tmp_path, tiny_sd, photos):
    assert_class_images_are_made(block("Prior-preserving loss"), tmp_path, tiny_sd, photos)


def test_text_encoder_block_saves_a_checkpoint_its_snippet_loads(tmp_path, tiny_sd, photos):
    printed = block("Text encoder and U-Net")
    assert "  --use_8bit_adam\n" in printed  # the shell would end the command here
    text = printed.replace("  --use_8bit_adam\n", "  --use_8bit_adam \\\n")
    assert_a_checkpoint_loads(text, tmp_path, tiny_sd, photos)


@pytest.mark.slow
def test_16_gb_block_trains(tmp_path, tiny_sd, photos):
    assert_trained(launch(block("16 GB"), tmp_path, tiny_sd, photos), tmp_path / "out", tiny_sd)


@pytest.mark.slow
def test_12_gb_block_trains_and_suggests_sdpa_without_xformers(tmp_path, tiny_sd, photos):
    text = block("12 GB")
    done = launch(text, tmp_path, tiny_sd, photos)
    if "xFormers is not installed" in done.stderr:
        assert done.returncode != 0
        assert "SDPA" in done.stderr
        assert not (tmp_path / "out").exists()
        assert XFORMERS in text
        done = launch(text.replace(XFORMERS, ""), tmp_path, tiny_sd, photos)
    assert_trained(done, tmp_path / "out", tiny_sd)


@pytest.mark.slow
def test_8_gb_block_trains_and_saves_under_deepspeed(tmp_path, tiny_sd, photos):
    pytest.importorskip("deepspeed")
    config = (
        tmp_path / "hf" / "accelerate" / "default_config.yaml"
    )  # what `accelerate config` writes
    config.parent.mkdir(parents=True)
    config.write_text((ROOT / "infra/accelerate/deepspeed-two-cpus.yaml").read_text())
    text = block("8 GB").rstrip() + " \\\n" + block("Saving checkpoints")
    done = launch(text, tmp_path, tiny_sd, photos)
    # DeepSpeed keeps the networks in half precision: what is saved is rounded to it.
    assert_trained(done, tmp_path / "out", tiny_sd, at_most=2e-3)
    state = tmp_path / "out" / "checkpoint-1" / "training_state"
    assert len(list(state.rglob("*optim_states.pt"))) == 2


@pytest.mark.slow
def test_8_gb_block_trains_in_half_precision(tmp_path, tiny_sd, photos):
    assert_trained(launch(block("8 GB"), tmp_path, tiny_sd, photos), tmp_path / "out", tiny_sd)
