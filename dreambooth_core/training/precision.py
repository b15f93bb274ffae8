"""The type of the trained weights: decided in one place, and asserted before the first step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from dreambooth_core.config import ComputeSettings, TrainSettings
from dreambooth_core.errors import SettingsError

WEIGHT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_COMPUTE_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_WHY_A_CPU = {
    "auto": "a CPU, as compute.device is auto",
    "cpu": "a CPU, as compute.device is cpu",
    "cuda": "no GPU, though compute.device is cuda",
}


def check_compute_type(
    train: TrainSettings, compute: ComputeSettings, *, device: torch.device
) -> None:
    """Raise SettingsError where the device cannot train in the compute type of the settings."""
    if train.mixed_precision == "fp16" and device.type == "cpu":
        raise SettingsError(
            "fp16 needs a GPU",
            key="train.mixed_precision",
            got=_WHY_A_CPU[compute.device],
            allowed="'no' and bf16 on a CPU",
            hint="use bf16 or 'no'",
        )


def loaded_type(settings: TrainSettings) -> torch.dtype:
    """The type that the networks are loaded in.

    Beside adapters their own weights are only read: they are held in the type that is computed in.
    Networks that are trained are loaded in the type of their weights.
    """
    if settings.method == "full":
        return WEIGHT_DTYPES[settings.weight_dtype]
    return _COMPUTE_DTYPES[settings.mixed_precision]


def cast_trainable(parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> None:
    """Put the trained weights into their type: the one place where it is decided.

    With fp16 compute they are fp32, so a scaler never meets an fp16 gradient.
    """
    for parameter in parameters.values():
        parameter.data = parameter.data.to(WEIGHT_DTYPES[settings.weight_dtype])


def check_types(parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> None:
    """Assert before the first step that every trained weight has the type of the settings."""
    expected = WEIGHT_DTYPES[settings.weight_dtype]
    wrong = [f"{n} is {p.dtype}" for n, p in parameters.items() if p.dtype != expected]
    assert not wrong, f"trained weights must be {expected}: {', '.join(wrong[:5])}"
