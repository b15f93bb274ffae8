"""Updates inside the backward pass: each gradient is applied and freed as soon as it is whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from dreambooth_core.config import TrainSettings
from dreambooth_core.training.optim.ddp import DdpStrategy
from dreambooth_core.training.optim.per_parameter import FusedBackward, PerParameter
from dreambooth_core.training.protocols import Applied
from dreambooth_core.training.trainable import TrainableModel


class FusedBackwardStrategy(DdpStrategy):
    """Whole weights on one device, and never more than one gradient.

    An update cannot be left out as a whole: a loss that is not finite masks all of it, a gradient
    that is not finite only its own parameter. So the last checkpoint is the recovery point.
    """

    def __init__(
        self,
        model: TrainableModel,
        *,
        accelerator: Accelerator,
        settings: TrainSettings,
        state: Path | None,
    ) -> None:
        super().__init__(model, accelerator=accelerator, settings=settings, state=state)
        assert isinstance(self._raw_optimizer, PerParameter)
        self._fused = FusedBackward(self._raw_optimizer)
        self._name_of = {p: name for name, p in model.trainable.items()}

    def begin(self, step: int, *, learning_rates: Sequence[float]) -> None:
        """Set the rates, and which groups rest: their gradients are freed unused."""
        super().begin(step, learning_rates=learning_rates)
        resting = [g for g in self.model.groups if not g.is_trained_at(step - 1)]
        self._fused.rest({p for group in resting for p in group.parameters.values()})

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Update every parameter; there is one micro-step, so this is the whole update."""
        assert last, "the settings refuse accumulation"
        self._fused.begin(self._step, loss)
        self._accelerator.backward(loss)

    def apply(self, loss: torch.Tensor) -> Applied:  # noqa: ARG002 - it has masked the update
        """The weights are updated; tell the norms."""
        self._follow()
        return Applied(self._fused.grad_norm(), norms=self._fused.norms)

    def drop_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Nothing to do: those of resting parameters were freed unused."""

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """The norm of its gradient, which itself is gone."""
        return self._fused.norms.get(self._name_of[parameter])
