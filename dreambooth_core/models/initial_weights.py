"""Puts the weights of an earlier training into the networks of a new one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dreambooth_core.config import TrainSettings
from dreambooth_core.errors import CorruptRecordError, SettingsError
from dreambooth_core.models import lora
from dreambooth_core.models.weights import copy_weights

KEY = "train.init_from"


def load_initial_weights(
    parts: Mapping[str, nn.Module], folder: Path, settings: TrainSettings
) -> None:
    """Copy the weights in `folder` into the trained networks. Raises SettingsError if they differ.

    `folder` is a checkpoint or an exported version. A network that it lacks keeps its own weights.
    """
    if settings.method == "lora":
        _load_adapter(parts, folder)
        return
    for part, module in parts.items():
        if (folder / part).is_dir():
            try:
                copy_weights(module, folder / part)
            except CorruptRecordError as error:
                raise SettingsError(
                    f"the weights do not fit the {part} of the base model",
                    key=KEY,
                    got=error.got,
                    hint="name weights that were trained on the same base model",
                ) from None


def _load_adapter(parts: Mapping[str, nn.Module], folder: Path) -> None:
    state, alpha = lora.read_adapter(folder)
    own = {
        lora.name_in_file(f"{part}.{name}"): parameter
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
        if ".lora_" in name
    }
    wrong = sorted(state.keys() ^ own.keys())
    wrong += sorted(n for n in state.keys() & own.keys() if state[n].shape != own[n].shape)
    settings_alpha = _alpha_of(parts)
    if wrong or alpha != settings_alpha:
        ranks = sorted({len(tensor) for name, tensor in state.items() if ".lora_A." in name})
        layers = sorted({_layer(name) for name in state})
        raise SettingsError(
            "these LoRA adapters differ from those of train.lora",
            key=KEY,
            got=f"rank {', '.join(map(str, ranks))}, lora_alpha {alpha:g}, "
            f"layers {', '.join(layers)}" + (f"; differs first at {wrong[0]}" if wrong else ""),
            hint="set train.lora and train.train_text_encoder as they were",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def _alpha_of(parts: Mapping[str, nn.Module]) -> float:
    unet: Any = parts["unet"]
    (config,) = unet.peft_config.values()
    return float(config.lora_alpha)


def _layer(name: str) -> str:
    """The layer of an adapter's tensor, by the end of its path: to_q, or to_out.0."""
    path = name.partition(".lora_")[0].split(".")
    return ".".join(path[-2:] if path[-1].isdigit() else path[-1:])
