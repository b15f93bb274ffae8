"""The data types of the weights, defined in one place and asserted before the first step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from dreambooth_core.config import ComputeSettings, TrainSettings
from dreambooth_core.errors import SettingsError

WEIGHT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_COMPUTE_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_DEVICE_FOUND = {
    "auto": "a CPU, because compute.device is auto and there is no GPU",
    "cpu": "a CPU, because compute.device is cpu",
    "cuda": "no GPU, although compute.device is cuda",
}


def check_compute_type(
    train: TrainSettings, compute: ComputeSettings, *, device: torch.device
) -> None:
    """Raise SettingsError if `device` does not support the mixed_precision of the settings."""
    if train.mixed_precision == "fp16" and device.type == "cpu":
        raise SettingsError(
            "fp16 needs a GPU",
            key="train.mixed_precision",
            got=_DEVICE_FOUND[compute.device],
            allowed="'no' and bf16 on a CPU",
            hint="use bf16 or 'no'",
        )


def loaded_type(settings: TrainSettings) -> torch.dtype:
    """Return the data type in which to load the networks.

    Full training uses the type of the trained weights. LoRA only reads the networks' weights, so it
    uses the compute type.
    """
    if settings.method == "full":
        return WEIGHT_DTYPES[settings.weight_dtype]
    return _COMPUTE_DTYPES[settings.mixed_precision]


def cast_trainable(parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> None:
    """Cast the trained weights to the type of the settings.

    It is never fp16, because the GradScaler does not support fp16 gradients.
    """
    for parameter in parameters.values():
        parameter.data = parameter.data.to(WEIGHT_DTYPES[settings.weight_dtype])


def check_types(parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> None:
    """Assert that every trained weight has the type of the settings."""
    expected = WEIGHT_DTYPES[settings.weight_dtype]
    wrong = [f"{n} is {p.dtype}" for n, p in parameters.items() if p.dtype != expected]
    assert not wrong, f"trained weights must be {expected}: {', '.join(wrong[:5])}"
