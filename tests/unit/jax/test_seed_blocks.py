"""The seed document's three JAX blocks run as printed, and its snippets load what they leave."""

import pytest
from PIL import Image

from tests.contract.seed_blocks import (
    assert_the_snippet_loads,
    assert_trained,
    block,
    launch,
    run_snippet,
)

pytestmark = pytest.mark.jax


def test_the_first_jax_block_trains_and_the_last_snippet_draws_a_picture(
    tmp_path, tiny_sd, photos, monkeypatch
):
    done = launch(block("JAX: fine-tuning"), tmp_path, tiny_sd, photos)
    assert_trained(done, tmp_path / "out", tiny_sd)
    monkeypatch.chdir(tmp_path)
    run_snippet(block("Inference from the result").replace("path_to_saved_model", "out"))
    assert Image.open("dog-bucket.png").size == (64, 64)


def test_the_jax_block_with_prior_preservation_makes_the_class_images_and_trains(
    tmp_path, tiny_sd, photos
):
    done = launch(block("JAX: prior-preserving loss"), tmp_path, tiny_sd, photos)
    assert_trained(done, tmp_path / "out", tiny_sd)
    assert len(list((tmp_path / "class").iterdir())) == 2


def test_the_jax_block_of_the_text_encoder_leaves_a_checkpoint_that_its_snippet_loads(
    tmp_path, tiny_sd, photos
):
    text = block("JAX: text encoder and U-Net").rstrip() + " \\\n" + block("Saving checkpoints")
    assert_trained(launch(text, tmp_path, tiny_sd, photos), tmp_path / "out", tiny_sd)
    assert_the_snippet_loads(tmp_path / "out" / "checkpoint-1", tiny_sd, tmp_path)
