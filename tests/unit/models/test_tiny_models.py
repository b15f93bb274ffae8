"""The tiny models are what they say: ordinary folders that load and run without a network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    ViTModel,
)

from tests import tiny_models


@pytest.mark.parametrize("fixture", ["tiny_sd", "tiny_sd_v"])
def test_tiny_pipeline_loads_and_draws_a_picture_with_contrast(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(
        request.getfixturevalue(fixture), safety_checker=None, use_safetensors=True
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipe("a photo of sks mug", num_inference_steps=3, generator=generator).images[0]
    pixels = np.asarray(image)
    assert pixels.shape == (tiny_models.SIDE, tiny_models.SIDE, 3)
    assert pixels.std() > 2
    assert pipe.vae_scale_factor == 8
    expected = "epsilon" if fixture == "tiny_sd" else "v_prediction"
    assert pipe.scheduler.config.prediction_type == expected


def test_tokenizer_keeps_known_words_whole_and_spells_unknown_ones(tiny_sd: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd / "tokenizer")
    known = tokenizer("a photo of sks mug").input_ids
    assert tokenizer.convert_ids_to_tokens(known)[1:-1] == [
        "a</w>", "photo</w>", "of</w>", "sks</w>", "mug</w>",
    ]  # fmt: skip
    spelled = tokenizer.convert_ids_to_tokens(tokenizer("zyx").input_ids)[1:-1]
    assert "".join(spelled) == "zyx</w>"
    assert len(spelled) == 3


def test_scorer_and_pipeline_tokenize_prompts_alike(tiny_sd: Path, tiny_clip: Path) -> None:
    ids = [
        AutoTokenizer.from_pretrained(folder)("a dog on the beach").input_ids
        for folder in (tiny_sd / "tokenizer", tiny_clip)
    ]
    assert ids[0] == ids[1]


def test_scorers_give_features_of_images_and_text(tiny_clip: Path, tiny_dino: Path) -> None:
    image = Image.effect_noise((80, 64), 60).convert("RGB")
    processor = CLIPProcessor.from_pretrained(tiny_clip)
    inputs = processor(text=["a mug"], images=[image], return_tensors="pt", padding=True)
    clip = CLIPModel.from_pretrained(tiny_clip)
    with torch.inference_mode():
        output = clip(**inputs)
    assert output.image_embeds.shape == output.text_embeds.shape == (1, tiny_models.TEXT_WIDTH)
    pixels = AutoImageProcessor.from_pretrained(tiny_dino, backend="pil")(
        [image], return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = ViTModel.from_pretrained(tiny_dino, add_pooling_layer=False)(**pixels)
    assert hidden.last_hidden_state.shape == (1, 1 + (64 // 16) ** 2, 32)


def test_building_twice_gives_the_same_weights(tmp_path: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    first, second = (
        (tiny_models.build_tiny_sd(tmp_path / str(i)) / name).read_bytes() for i in range(2)
    )
    assert first == second
