"""Updates inside the backward pass: each gradient is applied and then freed immediately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dreambooth_core.training.optim.ddp import DdpStrategy
from dreambooth_core.training.optim.per_parameter import PerParameter
from dreambooth_core.training.protocols import UpdateResult


class FusedBackwardStrategy(DdpStrategy):
    """Full weights on one device, with at most one gradient in memory.

    An update is masked by the loss and by the parameter's own gradient only, because the other
    gradients are not computed yet: a non-finite loss skips the whole update, a non-finite gradient
    only its own parameter. The last checkpoint is therefore the recovery point.
    """

    def _set_up(self, state: Path | None) -> None:
        super()._set_up(state)
        assert isinstance(self._raw_optimizer, PerParameter)
        self._per_parameter = self._raw_optimizer
        self._name_of = {p: name for name, p in self.model.trainable.items()}
        self._loss_is_finite = torch.ones((), dtype=torch.bool)
        self._frozen: set[nn.Parameter] = set()
        self._norms: dict[str, torch.Tensor] = {}
        for group in self._raw_optimizer.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(self._hook(group))

    def begin(self, step: int, *, learning_rates: Sequence[float]) -> None:
        """Set the rates and freeze the groups past their last step: gradients are freed unused."""
        super().begin(step, learning_rates=learning_rates)
        frozen = [g for g in self.model.groups if not g.is_trained_at(step - 1)]
        self._frozen = {p for group in frozen for p in group.parameters.values()}

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Update every parameter: there is one micro-step, so this is the whole update."""
        assert last, "the settings refuse accumulation"
        self._norms = {}
        self._loss_is_finite = torch.isfinite(loss.detach())
        self._per_parameter.begin(self._step, healthy=self._loss_is_finite)
        self.accelerator.backward(loss)

    def _hook(self, group: dict[str, Any]) -> Callable[[torch.Tensor], None]:
        def update(parameter: torch.Tensor) -> None:
            assert isinstance(parameter, nn.Parameter)
            assert parameter.grad is not None
            if parameter not in self._frozen:
                norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
                self._norms[self._name_of[parameter]] = norm
                healthy = self._loss_is_finite & torch.isfinite(norm)
                self._per_parameter.update(parameter, lr=group["lr"], healthy=healthy)
            parameter.grad = None

        return update

    def apply(self, loss: torch.Tensor) -> UpdateResult:  # noqa: ARG002 - it masked the backward pass
        """Return the norms: the backward pass has updated the weights."""
        self._follow()
        grad_norm = torch.linalg.vector_norm(torch.stack(list(self._norms.values())))
        return UpdateResult(grad_norm, norms=self._norms)

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """The norm of its gradient, which is already freed."""
        return self._norms.get(self._name_of[parameter])
