"""The loss of a micro-step as a pure function of JAX arrays: torch's own code, traced by torchax.

It traces the torch trainer's own `training.step.loss_of` with the same networks, so no formula or
layer exists twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from dreambooth_core.config import TrainSettings
from dreambooth_core.jax.torchax_import import import_torchax
from dreambooth_core.training.step import StepInput, loss_of

torchax = import_torchax()
interop = torchax.interop

Arrays = dict[str, jax.Array]
"""Arrays by the name of a parameter or buffer."""
Tensors = dict[str, Any]
"""The tensors of a micro-step by field of StepInput, some in a dictionary of their own."""

_COMPUTE_TYPES = {"no": None, "bf16": torch.bfloat16}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A copy of a tensor as a numpy array."""
    return np.array(tensor.detach().cpu())


def to_torch(array: jax.Array) -> torch.Tensor:
    """A copy of an array as a CPU tensor. Waits for the device."""
    return torch.from_numpy(np.array(array))


def tensors_of(inputs: StepInput) -> Tensors:
    """The tensors of a micro-step as numpy arrays, without the fields for messages."""
    fields = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    return {
        name: jax.tree.map(to_numpy, value)
        for name, value in fields.items()
        if isinstance(value, torch.Tensor | Mapping)
    }


def micro_step_loss(
    denoiser: nn.Module,
    template: StepInput,
    *,
    prior_loss_weight: float | None,
    settings: TrainSettings,
) -> Callable[[Arrays, Arrays, Tensors], tuple[jax.Array, tuple[jax.Array, jax.Array]]]:
    """(parameters, buffers, tensors) -> (total, (the LossParts [3], error of each row [B])).

    `template` is any micro-step of the run. It provides the fields that are not tensors.
    """

    def loss(
        parameters: Arrays, buffers: Arrays, tensors: Tensors
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        views = interop.torch_view({**parameters, **buffers})
        inputs = dataclasses.replace(template, **interop.torch_view(tensors))
        with _tracing(settings), torchax.default_env():
            bound = _Bound(denoiser, views, compute=_COMPUTE_TYPES[settings.mixed_precision])
            parts, error_B = loss_of(bound, inputs, prior_loss_weight=prior_loss_weight)
            values = torch.stack(parts)
        return interop.jax_view((parts.total, (values, error_B)))

    return loss


@contextlib.contextmanager
def _tracing(settings: TrainSettings) -> Iterator[None]:
    """Multiply fp32 matrices in full precision, which is not JAX's default on a TPU."""
    matrices = "default" if settings.allow_tf32 else "highest"
    with warnings.catch_warnings(), jax.default_matmul_precision(matrices):
        # JAX stores torch's int64 in 32 bits, enough for timesteps and token ids.
        warnings.filterwarnings("ignore", message="Explicitly requested dtype int64")
        yield


class _Bound(nn.Module):
    """A module called with other tensors than its own, in the compute type `compute`.

    As with accelerate, only the networks use that type, and predictions are fp32.
    """

    def __init__(
        self,
        module: nn.Module,
        tensors: Mapping[str, torch.Tensor],
        *,
        compute: torch.dtype | None,
    ) -> None:
        super().__init__()
        self._inner = (module, dict(tensors))  # in a tuple, so that torch does not register it
        self._compute = compute

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        module, tensors = self._inner
        with torchax.default_env().override_property(autocast_dtype=self._compute):
            predicted = torch.func.functional_call(module, tensors, args, kwargs)
        return predicted.float()


def recompute_through_jax(denoiser: nn.Module) -> None:
    """Use JAX's checkpointing in networks that recompute activations in the backward pass."""
    for part in denoiser.modules():
        if getattr(part, "gradient_checkpointing", False):
            part.__dict__["_gradient_checkpointing_func"] = _recomputed


def _recomputed(function: Callable[..., Any], *args: Any) -> Any:
    def on_arrays(*arrays: Any) -> Any:
        return interop.jax_view(function(*interop.torch_view(arrays)))

    return interop.torch_view(jax.checkpoint(on_arrays)(*interop.jax_view(args)))
