"""LoRA adapters of a U-Net: attach, take out, write in diffusers' and kohya's formats.

The update of a layer is (alpha / r) * B @ A, with A of shape [r, in] and B of [out, r].
Source: Hu et al. 2021, "LoRA", section 4.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

from dreambooth_core.config import LoraSettings
from dreambooth_core.errors import CorruptRecordError, SettingsError
from dreambooth_core.models.tensors import read_tensors, write_tensors
from dreambooth_core.numerics.seeding import generator_for

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that `pipeline.load_lora_weights(folder)` looks for."""
KOHYA_FILE = "lora_kohya.safetensors"

_METADATA_KEY = "lora_adapter_metadata"
_PREFIX = "unet."
_KOHYA_PREFIX = "lora_unet_"
_KOHYA_NAMES = {"lora_A": "lora_down", "lora_B": "lora_up"}


def add_adapter(unet: UNet2DConditionModel, settings: LoraSettings, *, seed: int) -> None:
    """Freeze the U-Net and give it trainable adapters that change nothing yet (B is zero).

    A is drawn with standard deviation 1/r, by generators of (seed, "lora", layer). Raises
    SettingsError when `lora_layers` fits no layer.
    """
    unet.requires_grad_(False)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType] - any number will do
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_layers),
        init_lora_weights="gaussian",
    )
    try:
        unet.add_adapter(config)
    except ValueError as error:
        raise SettingsError(
            "train.lora.lora_layers fits no layer of the U-Net",
            got=", ".join(settings.lora_layers),
            allowed="ends of module names, such as to_q, to_k, to_v, to_out.0",
        ) from error
    _draw_initial(unet, rank=settings.rank, seed=seed)


def _draw_initial(unet: UNet2DConditionModel, *, rank: int, seed: int) -> None:
    """Replace peft's own draw from the global generator."""
    adapters = sorted((name, p) for name, p in unet.named_parameters() if ".lora_A." in name)
    with torch.no_grad():
        for index, (_, weight) in enumerate(adapters):
            noise = torch.randn(weight.shape, generator=generator_for(seed, "lora", index))
            weight.copy_(noise / rank)


def adapter_parameters(unet: UNet2DConditionModel) -> list[torch.nn.Parameter]:
    """The adapters' weights, in the order of the model's parameters."""
    return [p for name, p in unet.named_parameters() if ".lora_" in name]


def adapter_state_dict(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """The adapters' weights by `unet.<layer>.lora_A.weight` and `...lora_B.weight`."""
    state = get_peft_model_state_dict(unet)
    return {f"{_PREFIX}{name}": tensor for name, tensor in sorted(state.items())}


def set_adapter_state_dict(unet: UNet2DConditionModel, state: Mapping[str, torch.Tensor]) -> None:
    """Put back what `adapter_state_dict` gave. Raises CorruptRecordError when names do not fit."""
    expected = set(adapter_state_dict(unet))
    if set(state) != expected:
        odd = sorted(set(state) ^ expected)
        raise CorruptRecordError("the adapter's weights do not fit the U-Net", got=", ".join(odd))
    set_peft_model_state_dict(unet, {k.removeprefix(_PREFIX): v for k, v in state.items()})


def write_adapter(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write the adapters as `folder/pytorch_lora_weights.safetensors`, with their alpha.

    Without the metadata a loader would take alpha = r and scale the update wrongly.
    """
    config = unet.peft_config["default"].to_dict()
    kept = {key: config[key] for key in ("r", "lora_alpha", "lora_dropout", "use_dora", "bias")}
    kept["target_modules"] = sorted(config["target_modules"])
    metadata = {f"{_PREFIX}{key}": value for key, value in kept.items()}
    text = json.dumps(metadata, sort_keys=True, indent=2)
    write_tensors(folder / LORA_FILE, adapter_state_dict(unet), metadata={_METADATA_KEY: text})


def read_adapter(folder: Path) -> tuple[dict[str, torch.Tensor], float]:
    """What `write_adapter` wrote: weights by name, and alpha. Raises CorruptRecordError."""
    state = read_tensors(folder / LORA_FILE)
    metadata = _read_metadata(folder / LORA_FILE)
    return state, float(metadata[f"{_PREFIX}lora_alpha"])


def _read_metadata(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        header = opened.metadata() or {}
    try:
        return json.loads(header[_METADATA_KEY])
    except (KeyError, ValueError):
        raise CorruptRecordError(f"{path} does not say its rank and alpha") from None


def kohya_state_dict(state: Mapping[str, torch.Tensor], *, alpha: float) -> dict[str, torch.Tensor]:
    """The adapters under kohya's names, as AUTOMATIC1111 and ComfyUI read them.

    `unet.a.b.to_q.lora_A.weight` becomes `lora_unet_a_b_to_q.lora_down.weight`, and every layer
    gets an `.alpha`: diffusers' own conversion writes alpha = r whatever it was.
    """
    kohya: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        layer, matrix, _ = name.removeprefix(_PREFIX).rsplit(".", 2)
        module = _KOHYA_PREFIX + layer.replace(".", "_")
        kohya[f"{module}.{_KOHYA_NAMES[matrix]}.weight"] = tensor
        kohya[f"{module}.alpha"] = torch.tensor(alpha)
    return kohya


def write_kohya(folder: Path, *, out: Path) -> None:
    """Write the adapters of a checkpoint folder in kohya's format to the file `out`."""
    state, alpha = read_adapter(folder)
    rank = next(len(tensor) for name, tensor in state.items() if ".lora_A." in name)
    metadata = {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    write_tensors(out, kohya_state_dict(state, alpha=alpha), metadata=metadata)
