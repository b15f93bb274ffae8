"""The shapes of a model's tensors, from its files' headers or from a table. Torch-free."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dreambooth_core.config import LoraSettings

Shape = tuple[int, ...]
SIGNATURE = ("block_out_channels", "layers_per_block", "cross_attention_dim")
"""The keys of a U-Net's config by which its architecture is known."""
_KNOWN = {
    "CompVis/stable-diffusion-v1-4": "sd1",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}
"""Hub ids whose shapes are known before they are downloaded."""
_TEXT_PARAMETERS = {"sd1": 123_060_480, "sdxl": 123_060_480 + 694_659_840}


@dataclass(frozen=True)
class ModelShapes:
    """A model's U-Net tensor by tensor, and the size of its text encoders.

    `architecture` is the name under which activations were traced; None: another model's.
    """

    architecture: str | None
    unet: tuple[tuple[str, Shape], ...]
    text_parameters: int

    @property
    def num_parameters(self) -> int:
        """Parameters of the U-Net."""
        return sum(math.prod(shape) for _, shape in self.unet)

    def adapters(self, lora: LoraSettings) -> list[Shape]:
        """The shapes of the adapters' factors: [r, in] and [out, r] for every fitting layer."""
        layers = [
            shape
            for name, shape in self.unet
            if name.endswith(".weight") and _fits(name.removesuffix(".weight"), lora.lora_layers)
        ]
        factors: list[Shape] = []
        for shape in layers:
            factors += [(lora.rank, *shape[1:]), (shape[0], lora.rank)]
        return factors


def _fits(module: str, layers: Sequence[str]) -> bool:
    return any(module == layer or module.endswith(f".{layer}") for layer in layers)


def shapes_of(name: str, folder: Path | None) -> ModelShapes | None:
    """The shapes of the model in `folder`, or of a known hub id; None for any other."""
    if folder is not None:
        return _from_files(folder)
    return _from_table(_KNOWN[name]) if name in _KNOWN else None


def _from_files(folder: Path) -> ModelShapes:
    config = json.loads((folder / "unet" / "config.json").read_bytes())
    parts = ("text_encoder", "text_encoder_2")
    text = [shape for part in parts for _, shape in _headers(folder / part)]
    return ModelShapes(
        architecture=_architecture_of(config),
        unet=tuple(_headers(folder / "unet")),
        text_parameters=sum(math.prod(shape) for shape in text),
    )


def _headers(folder: Path) -> list[tuple[str, Shape]]:
    """Names and shapes of all tensors of a network's plain safetensors files."""
    found: list[tuple[str, Shape]] = []
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.count(".") > 1:
            continue  # a variant, such as fp16
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(size))
        found += [(n, tuple(t["shape"])) for n, t in header.items() if n != "__metadata__"]
    return found


def _architecture_of(config: Mapping[str, Any]) -> str | None:
    own = [config.get(key) for key in SIGNATURE]
    for name, entry in read_table("shapes.json").items():
        if entry["signature"] == own:
            return name
    return None


def _from_table(architecture: str) -> ModelShapes:
    rows = read_table("shapes.json")[architecture]["unet"]
    unet = [(name, tuple(shape)) for name, shape, count in rows for _ in range(count)]
    return ModelShapes(architecture, tuple(unet), _TEXT_PARAMETERS[architecture])


def read_table(name: str) -> dict[str, Any]:
    """A table that lies beside this module."""
    return json.loads(resources.files("dreambooth_core.planning").joinpath(name).read_bytes())
