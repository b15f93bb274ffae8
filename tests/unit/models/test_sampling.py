"""Sampling: a picture's bits depend on its own prompt and seed, and a stop is heeded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from dreambooth_core.config import BaseModelSettings
from dreambooth_core.errors import Stopped
from dreambooth_core.models import load
from dreambooth_core.models.sampling import sample


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> StableDiffusionPipeline:
    settings = BaseModelSettings(pretrained_model_name_or_path=str(tiny_sd))
    return load.load_pipeline(settings, tiny_sd, device=torch.device("cpu"))


def draw(pipe: StableDiffusionPipeline, seeds: list[int], **more: object) -> list[bytes]:
    call = {"steps": 3, "guidance": 3.0, "resolution": 64, "batch_size": 3} | more
    prompts = [f"a photo of a dog {seed % 2}" for seed in seeds]
    return [image.tobytes() for image in sample(pipe, prompts=prompts, seeds=seeds, **call)]


def test_three_images_are_the_first_three_of_seven(pipe: StableDiffusionPipeline) -> None:
    seven = draw(pipe, [5, 6, 7, 8, 9, 10, 11])
    assert draw(pipe, [5, 6, 7]) == seven[:3]
    assert draw(pipe, [5, 6, 7, 8]) == seven[:4]
    assert len(set(seven)) == 7


def test_short_block_is_padded_so_neighbours_do_not_matter(
    pipe: StableDiffusionPipeline,
) -> None:
    assert draw(pipe, [5])[0] == draw(pipe, [5, 900, 901])[0]


def test_images_have_the_asked_size_and_mode(pipe: StableDiffusionPipeline) -> None:
    call = {"steps": 1, "guidance": 1.0, "resolution": 32, "batch_size": 2}
    image = sample(pipe, prompts=["a mug"], seeds=[1], **call)[0]
    assert (image.size, image.mode) == ((32, 32), "RGB")
    assert np.asarray(image).std() > 0


def test_a_stop_between_steps_raises_stopped(pipe: StableDiffusionPipeline) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Stopped, match="stopped on request"):
        draw(pipe, [1, 2, 3], should_stop=lambda: next(asked))
    assert draw(pipe, [5]) == draw(pipe, [5])


def test_calls_in_other_threads_find_the_tokenizer_as_it_was(pipe: StableDiffusionPipeline) -> None:
    tokenizer = pipe.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    draw(pipe, [1])
    assert (tokenizer.padding, tokenizer.truncation) == (None, None)


def test_training_mode_is_given_back(pipe: StableDiffusionPipeline) -> None:
    pipe.unet.train()
    try:
        draw(pipe, [1])
        assert pipe.unet.training
        assert all(part.training for part in pipe.unet.modules())
    finally:
        pipe.unet.eval()


def test_unequal_prompts_and_seeds_are_a_bug(pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        sample(
            pipe, prompts=["a", "b"], seeds=[1], steps=1, guidance=1, resolution=64, batch_size=1
        )
