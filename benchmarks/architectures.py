"""The U-Nets of real models by their configs, to be built with random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Architecture:
    """A U-Net's config, and the number of parameters that the published weights have."""

    unet: dict[str, Any]
    num_parameters: int | None


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
    859_520_964,
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
    2_567_463_684,
)
POCKET = Architecture(
    json.loads((ROOT / "assets" / "pocket-sd" / "unet" / "config.json").read_text()), None
)

ARCHITECTURES = {"pocket": POCKET, "sd1": SD1, "sdxl": SDXL}
