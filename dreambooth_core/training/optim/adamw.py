"""Builds the optimizer of the settings (AdamW, 8-bit AdamW, Adafactor) and saves its state.

fp32 weights with AdamW use torch's fused kernel over all parameters, which can skip an update on
the device. 8-bit moments, a factored state, bf16 weights and updates inside the backward pass need
`PerParameter`, one library optimizer per parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dreambooth_core.config import TrainSettings
from dreambooth_core.environment import is_installed
from dreambooth_core.errors import CorruptRecordError, SettingsError
from dreambooth_core.training.optim.per_parameter import MakeOptimizer, PerParameter
from dreambooth_core.training.trainable import TrainableModel

BITSANDBYTES = "bitsandbytes>=0.50,<0.51"
"""The requirement named in errors; it equals the extra `adam8bit` in pyproject.toml."""

_SEPARATOR = "|"


def build_optimizer(model: TrainableModel, settings: TrainSettings) -> Optimizer:
    """Build the optimizer of the settings over the model's parameter groups.

    Raises SettingsError if its library is missing.
    """
    if settings.uses_fused_adamw:
        return fused_adamw(model, settings)
    return PerParameter(model.groups, _per_parameter_optimizer(settings), seed=settings.seed)


def fused_adamw(model: TrainableModel, settings: TrainSettings) -> torch.optim.AdamW:
    """Build torch's AdamW: one kernel updates all parameters."""
    return torch.optim.AdamW(parameter_groups(model), fused=True, **adam_options(settings))


def parameter_groups(model: TrainableModel) -> list[dict[str, list[nn.Parameter]]]:
    """The parameter groups in an optimizer's form, in their order."""
    return [{"params": list(group.parameters.values())} for group in model.groups]


def begin_update(optimizer: Optimizer, *, step: int, healthy: torch.Tensor) -> None:
    """Set the number of the next update; the update is skipped if `healthy` (0-d bool) is false.

    The mask stays on the device, so nothing waits for it.
    """
    if isinstance(optimizer, PerParameter):
        optimizer.begin(step, healthy=healthy)
    else:
        # The fused kernel leaves weights and moments unchanged if found_inf is 1.
        optimizer.found_inf = (~healthy).float()  # pyright: ignore[reportAttributeAccessIssue]


def adam_options(settings: TrainSettings) -> dict[str, Any]:
    """AdamW's options for any library; every update overwrites the rate with its group's own."""
    return {
        "lr": settings.peak_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.adam_weight_decay,
    }


def _per_parameter_optimizer(settings: TrainSettings) -> MakeOptimizer:
    if settings.optimizer == "adafactor":
        return _adafactor(settings)
    if settings.use_8bit_adam:
        return _adam_8bit(settings)
    return lambda params: torch.optim.AdamW(params, fused=True, **adam_options(settings))


def _adafactor(settings: TrainSettings) -> MakeOptimizer:
    """Adafactor (Shazeer and Stern 2018) without momentum and without relative steps.

    `learning_rate` means the step size, as in AdamW; the update's root mean square is clipped to 1
    first. AdamW's weight decay applies, its betas and epsilon do not.
    """
    from transformers.optimization import Adafactor  # imported only by runs that use it

    return lambda params: Adafactor(
        params,
        lr=settings.peak_rate,
        weight_decay=settings.adam_weight_decay,
        scale_parameter=False,
        relative_step=False,
    )


def check_adam_8bit() -> None:
    """Raise SettingsError if bitsandbytes is not installed, without importing it."""
    if not is_installed("bitsandbytes"):
        raise _no_bitsandbytes("it is not installed")


def _no_bitsandbytes(why: str) -> SettingsError:
    return SettingsError(
        "needs bitsandbytes, which cannot be imported",
        key="train.use_8bit_adam",
        got=why,
        hint=f'pip install "{BITSANDBYTES}", or turn use_8bit_adam off',
    )


def _adam_8bit(settings: TrainSettings) -> MakeOptimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise _no_bitsandbytes(str(error)) from None
    return lambda params: AdamW8bit(params, **adam_options(settings))


def optimizer_tensors(optimizer: Optimizer, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as tensors named `<parameter>|<quantity>`.

    `names` are the parameter names in the optimizer's order. No two tensors share memory.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for index, quantities in optimizer.state_dict()["state"].items():
        for quantity, value in quantities.items():
            tensor = torch.as_tensor(value)
            shared = tensor.data_ptr() in seen  # a table that all 8-bit states look up
            seen.add(tensor.data_ptr())
            tensors[f"{names[index]}{_SEPARATOR}{quantity}"] = tensor.clone() if shared else tensor
    return tensors


def load_optimizer_tensors(
    optimizer: Optimizer, tensors: Mapping[str, torch.Tensor], *, names: Sequence[str]
) -> None:
    """Load the state that `optimizer_tensors` returned.

    Raises CorruptRecordError if it belongs to another model.
    """
    index_of = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, quantity = key.rsplit(_SEPARATOR, 1)
        if name not in index_of:
            raise CorruptRecordError(f"the optimizer's state is of another model: {name}")
        state.setdefault(index_of[name], {})[quantity] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
