"""The weights and moments of a model on JAX's devices.

Saved states have the names and the layout of the torch trainer's, so each trainer reads both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dreambooth_core.config import TrainSettings
from dreambooth_core.jax import optax_adamw
from dreambooth_core.jax.functional import Arrays, to_numpy, to_torch
from dreambooth_core.jax.optax_adamw import Moments
from dreambooth_core.jax.placement import Placement
from dreambooth_core.training.optim.ddp import OPTIMIZER, WEIGHTS
from dreambooth_core.training.protocols import CheckpointSource
from dreambooth_core.training.trainable import TrainableModel


class JaxState:
    """A `training.protocols.TrainingState`. The model itself keeps its initial tensors."""

    def __init__(
        self,
        model: TrainableModel,
        *,
        settings: TrainSettings,
        placement: Placement,
        state: Path | None,
    ) -> None:
        """Resume from the verified state in the folder `state`, or start anew (None)."""
        self.model = model
        self._name_of = {id(p): name for name, p in model.trainable.items()}
        start = {name: to_numpy(p) for name, p in model.trainable.items()}
        moments = optax_adamw.adamw(settings).init(start)
        if state is not None:
            start = {name: to_numpy(weight) for name, weight in load_file(state / WEIGHTS).items()}
            assert start.keys() == model.trainable.keys(), "the state is of another model"
            moments = optax_adamw.from_torch_state(moments, load_file(state / OPTIMIZER))
        self.parameters: Arrays = placement.on_all(start)
        self.moments: Moments = placement.on_all(moments)
        self.frozen: Arrays = placement.on_all(_frozen_tensors(model))
        self.gradients: Arrays | None = None

    def value(self, parameter: nn.Parameter) -> torch.Tensor:
        """A copy of a trained parameter's current value, or a frozen parameter itself."""
        if id(parameter) not in self._name_of:
            return parameter.detach()
        return to_torch(self.parameters[self._name_of[id(parameter)]])

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """A copy of a parameter's gradient, or None."""
        if self.gradients is None:
            return None
        return to_torch(self.gradients[self._name_of[id(parameter)]])

    def save(self, folder: Path) -> None:
        """Write weights and moments."""
        save_file({n: to_torch(a) for n, a in self.parameters.items()}, folder / WEIGHTS)
        save_file(optax_adamw.to_torch_state(self.moments), folder / OPTIMIZER)

    def snapshot(self) -> CheckpointSource | None:
        """None: the state is copied and written before the next update."""

    @contextlib.contextmanager
    def gathered_weights(self) -> Iterator[None]:
        """Copy the current weights into the model, which keeps them until the next call."""
        with torch.no_grad():
            for parameter in self.model.trainable.values():
                parameter.copy_(self.value(parameter))
        yield


def _frozen_tensors(model: TrainableModel) -> dict[str, np.ndarray]:
    """The buffers and the frozen parameters."""
    every = {**dict(model.denoiser.named_parameters()), **dict(model.denoiser.named_buffers())}
    return {name: to_numpy(t) for name, t in every.items() if name not in model.trainable}
