"""How much of a training a pipeline shows: W0 + s (W - W0), from the base model to the trained one.

A strength of 0 is the base model, 1 the trained one; above 1, the change is exaggerated. For an
adapter, s multiplies its update, which is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dreambooth_core.errors import SettingsError
from dreambooth_core.models import weights
from dreambooth_core.models.families import Pipeline


def set_strength(pipe: Pipeline, strength: float, *, load_base: Callable[[], Pipeline]) -> None:
    """Set the strength of a trained pipeline; 1 leaves every bit as it is.

    `load_base` is called for fully trained networks alone. Raises SettingsError if the base model
    has other networks.
    """
    if strength == 1.0:
        return
    if has_adapter(pipe):
        pipe.set_adapters(weights.ADAPTER, strength)
        return
    base = load_base()
    for name in weights.COMPONENTS:
        trained: Any = getattr(pipe, name, None)
        if trained is not None:
            _blend(trained, getattr(base, name, None), strength, name=name)


def has_adapter(pipe: Pipeline) -> bool:
    """Whether the pipeline's U-Net or a text encoder has an adapter."""
    parts = (getattr(pipe, name, None) for name in weights.COMPONENTS)
    return any(getattr(part, "peft_config", None) for part in parts)


def _blend(trained: torch.nn.Module, base: Any, strength: float, *, name: str) -> None:
    start = {} if base is None else base.state_dict()
    own = trained.state_dict()
    if {key: w.shape for key, w in own.items()} != {key: w.shape for key, w in start.items()}:
        raise SettingsError(
            f"--strength: the {name} of the base model has other layers than the trained one",
            hint="set base_model in params.yaml to the model that this one was trained from",
        )
    with torch.no_grad():
        for key, weight in own.items():
            if weight.is_floating_point():
                weight.copy_(torch.lerp(start[key].to(weight), weight, strength))
