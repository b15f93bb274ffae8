"""diffusers and transformers use the shipped and the written models with no dtype named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPProcessor, CLIPTextModel

from dreambooth_core.models import weights
from tests.paths import ROOT

ASSETS = ROOT / "assets"
PROMPT = "a photo of a red mug"


def draws(pipe: StableDiffusionPipeline) -> bool:
    """Whether the pipeline draws a picture that is not one flat colour."""
    image = pipe(PROMPT, num_inference_steps=2).images[0]
    return max(high - low for low, high in image.getextrema()) > 0


@pytest.mark.parametrize("cls", [StableDiffusionPipeline, DiffusionPipeline])
def test_the_shipped_pipeline_draws(cls: type[StableDiffusionPipeline]) -> None:
    assert draws(cls.from_pretrained(ASSETS / "pocket-sd"))


def test_the_shipped_scorers_score() -> None:
    image = Image.open(ROOT / "examples" / "mug-stripes" / "01.png").convert("RGB")
    clip = CLIPModel.from_pretrained(ASSETS / "pocket-clip")
    processor = CLIPProcessor.from_pretrained(ASSETS / "pocket-clip")
    words = processor(
        text=["a photo of a mug", "a photo of a duck"],
        images=[image],
        return_tensors="pt",
        padding=True,
    )
    mug, duck = clip(**words).logits_per_image[0]
    assert mug > duck
    dino = AutoModel.from_pretrained(ASSETS / "pocket-dino")
    pixels = AutoImageProcessor.from_pretrained(ASSETS / "pocket-dino")(image, return_tensors="pt")
    assert torch.isfinite(dino(**pixels).pooler_output).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checkpoint_of_any_weight_dtype_joins_the_base_pipeline(
    tiny_sd: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    trained = StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=dtype, safety_checker=None)
    parts = {"unet": trained.unet, "text_encoder": trained.text_encoder}
    weights.write_networks(parts, tmp_path / "checkpoint-1")
    pipe = DiffusionPipeline.from_pretrained(
        tiny_sd,
        unet=UNet2DConditionModel.from_pretrained(tmp_path / "checkpoint-1" / "unet"),
        text_encoder=CLIPTextModel.from_pretrained(tmp_path / "checkpoint-1" / "text_encoder"),
        safety_checker=None,
    )
    assert draws(pipe)


def test_a_checkpoint_draws_in_half_precision_when_every_part_names_it(
    tiny_sd: Path, tmp_path: Path
) -> None:
    trained = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    parts = {"unet": trained.unet, "text_encoder": trained.text_encoder}
    weights.write_networks(parts, tmp_path)
    half = torch.bfloat16
    pipe = DiffusionPipeline.from_pretrained(
        tiny_sd,
        unet=UNet2DConditionModel.from_pretrained(tmp_path / "unet", dtype=half),
        text_encoder=CLIPTextModel.from_pretrained(tmp_path / "text_encoder", dtype=half),
        safety_checker=None,
        dtype=half,
    )
    assert draws(pipe)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_written_pipeline_of_any_weight_dtype_draws(
    tiny_sd: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=dtype, safety_checker=None)
    weights.write_pipeline(pipe, tmp_path / "out")
    assert draws(StableDiffusionPipeline.from_pretrained(tmp_path / "out"))
