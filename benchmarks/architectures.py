"""Configs of real models, for networks with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Architecture:
    """The configs of a U-Net and its text encoders.

    `num_parameters` has the published numbers for the U-Net and for all text encoders together.
    """

    unet: dict[str, Any]
    text: Sequence[dict[str, Any]]
    num_parameters: tuple[int, int] | None

    def build_unet(self) -> UNet2DConditionModel:
        """The U-Net."""
        unet = UNet2DConditionModel.from_config(self.unet)
        assert isinstance(unet, UNet2DConditionModel)
        return unet

    def build_text(self) -> dict[str, nn.Module]:
        """The text encoders by their names in a pipeline; the second has a projection."""
        configs = [CLIPTextConfig(**config) for config in self.text]
        encoders: dict[str, nn.Module] = {"text_encoder": CLIPTextModel(configs[0])}
        if len(configs) > 1:
            encoders["text_encoder_2"] = CLIPTextModelWithProjection(configs[1])
        return encoders


_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}


SD1 = Architecture(
    {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    [_CLIP_L],
    (859_520_964, 123_060_480),
)
SDXL = Architecture(
    {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    [_CLIP_L, _CLIP_BIG_G],
    (2_567_463_684, 123_060_480 + 694_659_840),
)


def _pocket(part: str) -> dict[str, Any]:
    return json.loads((ROOT / "assets" / "pocket-sd" / part / "config.json").read_bytes())


POCKET = Architecture(_pocket("unet"), [_pocket("text_encoder")], None)

ARCHITECTURES = {"pocket": POCKET, "sd1": SD1, "sdxl": SDXL}
