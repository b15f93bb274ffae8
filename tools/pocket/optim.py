"""Muon: momentum with orthogonalised matrix updates (Jordan et al. 2024), AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: torch.Tensor, *, rounds: int = 5) -> torch.Tensor:
    """The nearest matrix with singular values around 1, by Newton-Schulz in bf16; shape (R, C)."""
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Groups with `muon: True` hold weights of 2 or more dimensions (flattened to matrices).

    Updates are scaled to AdamW's usual size, so that both kinds of group share a learning rate.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float) -> None:
        defaults = {"lr": lr, "weight_decay": 0.0, "momentum": 0.95, "betas": (0.9, 0.99)}
        super().__init__(groups, {**defaults, "muon": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; closures are not supported."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            move = self._muon if group["muon"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    move(parameter, group)

    def _muon(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        gradient = parameter.grad
        assert gradient is not None
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]).flatten(1)
        scale = 0.2 * max(update.shape) ** 0.5
        parameter.add_(orthogonalised(update).view_as(parameter), alpha=-group["lr"] * scale)

    def _adam(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        gradient = parameter.grad
        assert gradient is not None
        first = state.setdefault("first", torch.zeros_like(parameter))
        second = state.setdefault("second", torch.zeros_like(parameter))
        state["count"] = state.get("count", 0) + 1
        low, high = group["betas"]
        first.lerp_(gradient, 1 - low)
        second.lerp_(gradient.square(), 1 - high)
        size = (second / (1 - high ** state["count"])).sqrt_().add_(1e-8)
        parameter.addcdiv_(first, size, value=-group["lr"] / (1 - low ** state["count"]))
