"""The tensor shapes of a model, from the headers of its files or a table. Torch-free."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.config import LoraSettings, TrainSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import sides
from dreambooth_core.planning.tables import read_table

Shape = tuple[int, ...]
SIGNATURE = ("block_out_channels", "layers_per_block", "cross_attention_dim")
"""The keys of a U-Net's config that identify its architecture."""
_KNOWN = {
    "CompVis/stable-diffusion-v1-4": "sd1",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd1",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}
"""Hub ids whose shapes are known before a download."""
_SIDES = {"sd1": 512, "sdxl": 1024}
"""The sides in pixels that these architectures were trained at."""

Named = tuple[tuple[str, Shape], ...]


@dataclass(frozen=True)
class ModelShapes:
    """The shapes of a model's U-Net and text encoders.

    `architecture` is the model's name in the tables, or None if it is not there.
    """

    architecture: str | None
    unet: Named
    text: Named

    def trained(self, train: TrainSettings) -> list[Shape]:
        """The shapes of the trained tensors: whole networks, or adapters of their layers.

        Raises SettingsError for layer names that match no layer of the networks.
        """
        lora = train.lora if train.method == "lora" else None
        text = self.text if train.train_text_encoder else ()
        if lora is None:
            return [shape for _, shape in (*self.unet, *text)]
        _require_layers(self.unet, "lora_layers", lora.lora_layers)
        if text:
            _require_layers(text, "text_encoder_layers", lora.text_encoder_layers)
        of_text = _adapters(text, lora.text_encoder_layers, lora)
        return [*_adapters(self.unet, lora.lora_layers, lora), *of_text]

    def frozen(self, train: TrainSettings) -> list[Shape]:
        """The shapes of the frozen tensors."""
        if train.method != "lora":
            return []
        text = self.text if train.train_text_encoder else ()
        return [shape for _, shape in (*self.unet, *text)]


def _adapters(tensors: Named, layers: Sequence[str], lora: LoraSettings) -> list[Shape]:
    """The shapes of the adapters: [r, in] and [out, r] for every matching layer.

    DoRA adds [out], the magnitudes.
    """
    factors: list[Shape] = []
    for name, shape in tensors:
        if name.endswith(".weight") and _matches(name.removesuffix(".weight"), layers):
            factors += [(lora.rank, *shape[1:]), (shape[0], lora.rank)]
            factors += [(shape[0],)] if lora.use_dora else []
    return factors


def _require_layers(tensors: Named, option: str, layers: Sequence[str]) -> None:
    names = [name.removesuffix(".weight") for name, _ in tensors if name.endswith(".weight")]
    if not names:
        return  # the weights are in another format, so their names are unknown
    unknown = [layer for layer in layers if not any(_matches(name, [layer]) for name in names)]
    if unknown or not layers:
        raise SettingsError(
            "no layer of the base model has this name",
            key=f"train.lora.{option}",
            got=", ".join(unknown) or "an empty list",
            hint="use name endings: to_q or to_out.0 for a U-Net, q_proj for a text encoder",
        )


def _matches(module: str, layers: Sequence[str]) -> bool:
    return any(module == layer or module.endswith(f".{layer}") for layer in layers)


def shapes_of(name: str, folder: Path | None) -> ModelShapes | None:
    """The shapes of the model in `folder`, or of a known hub id. None for other models."""
    if folder is not None:
        return _from_files(folder)
    return _from_table(_KNOWN[name]) if name in _KNOWN else None


def trained_side(name: str, folder: Path | None) -> int | None:
    """The side that the model in `folder`, or of a known hub id, was trained at."""
    if folder is not None:
        return sides.trained_side(folder)
    return _SIDES[_KNOWN[name]] if name in _KNOWN else None


def _from_files(folder: Path) -> ModelShapes:
    config = json.loads((folder / "unet" / "config.json").read_bytes())
    parts = ("text_encoder", "text_encoder_2")
    return ModelShapes(
        architecture=_architecture_of(config),
        unet=tuple(_headers(folder / "unet")),
        text=tuple(tensor for part in parts for tensor in _headers(folder / part)),
    )


def _headers(folder: Path) -> list[tuple[str, Shape]]:
    """The names and shapes of all tensors in a network's safetensors files, without variants."""
    found: list[tuple[str, Shape]] = []
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.count(".") > 1:
            continue  # a variant, such as fp16
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(size))
        found += [
            (name, tuple(tensor["shape"]))
            for name, tensor in header.items()
            if name != "__metadata__" and not name.endswith("position_ids")
        ]
    return found


def _architecture_of(config: Mapping[str, Any]) -> str | None:
    own = [config.get(key) for key in SIGNATURE]
    for name, entry in read_table("shapes.json").items():
        if entry["signature"] == own:
            return name
    return None


def _from_table(architecture: str) -> ModelShapes:
    table = read_table("shapes.json")[architecture]
    unet, text = (
        tuple((name, tuple(shape)) for name, shape, count in table[part] for _ in range(count))
        for part in ("unet", "text")
    )
    return ModelShapes(architecture, unet, text)
