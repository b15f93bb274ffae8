"""The guide's three JAX blocks run as printed, and its snippets load what they leave."""

import pytest

from tests.contract.guide_blocks import (
    assert_a_checkpoint_loads,
    assert_class_images_are_made,
    assert_the_result_draws,
    block,
)

pytestmark = pytest.mark.jax


def test_first_jax_block_trains_and_last_snippet_generates_an_image(tmp_path, tiny_sd, photos):
    assert_the_result_draws(block("JAX: fine-tuning"), tmp_path, tiny_sd, photos)


def test_jax_prior_preservation_block_samples_class_images_and_trains(tmp_path, tiny_sd, photos):
    assert_class_images_are_made(block("JAX: prior-preserving loss"), tmp_path, tiny_sd, photos)


def test_jax_text_encoder_block_saves_a_checkpoint_its_snippet_loads(tmp_path, tiny_sd, photos):
    assert_a_checkpoint_loads(block("JAX: text encoder and U-Net"), tmp_path, tiny_sd, photos)
