"""Updates inside the backward pass: each gradient is applied and then freed immediately."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dreambooth_core.training.optim.ddp import DdpStrategy
from dreambooth_core.training.optim.per_parameter import PerParameter
from dreambooth_core.training.protocols import UpdateResult


class FusedBackward:
    """Updates each parameter inside the backward pass and frees its gradient immediately.

    At most one gradient exists at a time. An update is masked by the loss and by the parameter's
    own gradient only, because the other gradients are not computed yet.
    """

    def __init__(self, optimizer: PerParameter) -> None:
        self._optimizer = optimizer
        self._names = {p: name for name, p in _named(optimizer)}
        self._loss_is_finite = torch.ones((), dtype=torch.bool)
        self._frozen: set[nn.Parameter] = set()
        self.norms: dict[str, torch.Tensor] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(self._hook(group))

    def freeze(self, parameters: set[nn.Parameter]) -> None:
        """Freeze these parameters from now on."""
        self._frozen = parameters

    def begin(self, step: int, loss: torch.Tensor) -> None:
        """Set the number of the update that the backward pass of `loss` (0-d) makes."""
        self.norms = {}
        self._loss_is_finite = torch.isfinite(loss.detach())
        self._optimizer.begin(step, healthy=self._loss_is_finite)

    def _hook(self, group: dict[str, Any]) -> Callable[[torch.Tensor], None]:
        def update(parameter: torch.Tensor) -> None:
            assert isinstance(parameter, nn.Parameter)
            assert parameter.grad is not None
            if parameter in self._frozen:
                parameter.grad = None
                return
            norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
            self.norms[self._names[parameter]] = norm
            healthy = self._loss_is_finite & torch.isfinite(norm)
            self._optimizer.update(parameter, lr=group["lr"], healthy=healthy)
            parameter.grad = None

        return update

    def grad_norm(self) -> torch.Tensor:
        """The global gradient norm of the last backward pass; non-finite if a gradient is."""
        return torch.linalg.vector_norm(torch.stack(list(self.norms.values())))


def _named(optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


class FusedBackwardStrategy(DdpStrategy):
    """Full weights on one device, with at most one gradient in memory.

    A non-finite loss skips the whole update, a non-finite gradient only its own parameter. The last
    checkpoint is therefore the recovery point.
    """

    def _set_up(self, state: Path | None) -> None:
        super()._set_up(state)
        assert isinstance(self._raw_optimizer, PerParameter)
        self._fused = FusedBackward(self._raw_optimizer)
        self._name_of = {p: name for name, p in self.model.trainable.items()}

    def begin(self, step: int, *, learning_rates: Sequence[float]) -> None:
        """Set the rates and freeze the groups past their last step: gradients are freed unused."""
        super().begin(step, learning_rates=learning_rates)
        resting = [g for g in self.model.groups if not g.is_trained_at(step - 1)]
        self._fused.freeze({p for group in resting for p in group.parameters.values()})

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Update every parameter: there is one micro-step, so this is the whole update."""
        assert last, "the settings refuse accumulation"
        self._fused.begin(self._step, loss)
        self._accelerator.backward(loss)

    def apply(self, loss: torch.Tensor) -> UpdateResult:  # noqa: ARG002 - it masked the backward pass
        """Return the norms: the backward pass has updated the weights."""
        self._follow()
        return UpdateResult(self._fused.grad_norm(), norms=self._fused.norms)

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """The norm of its gradient, which is already freed."""
        return self._fused.norms.get(self._name_of[parameter])
