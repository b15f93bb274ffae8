"""One library optimizer per parameter, with a skip mask on the device and stochastic rounding.

No library combines 8-bit or factored moments with bf16 weights, updates in the backward pass and a
skip that does not wait for the device. `PerParameter` adds these to any library's optimizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.training.trainable import ParameterGroup

_LOW_BITS = 1 << 16
_BF16_BITS = -_LOW_BITS
"""As int32: keeps sign, exponent and the seven mantissa bits that bf16 has."""


def stochastic_round(x: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Round `x` (fp32, finite) to bf16, up or down at random and without bias.

    The nearer a neighbour, the more probable it is: this adds a uniform 16-bit number to the bits
    that are then cut off (Gupta et al. 2015).
    """
    bits = torch.randint(
        _LOW_BITS, x.shape, dtype=torch.int32, device=x.device, generator=generator
    )
    bits += x.contiguous().view(torch.int32)
    bits &= _BF16_BITS
    return bits.view(torch.float32).to(torch.bfloat16)


MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
"""Builds a library's optimizer for one parameter."""


@dataclass
class _Entry:
    """A parameter, its temporary fp32 copy, and the optimizer that updates the copy."""

    name: str
    parameter: nn.Parameter
    fp32: nn.Parameter
    optimizer: Optimizer


class PerParameter(Optimizer):
    """One library optimizer per parameter; each updates a temporary fp32 copy of its weight.

    The copy exists only during the update. A bf16 weight is updated in fp32 and rounded
    stochastically; a skipped update restores the weight. The copy is a matrix [out, rest], so a
    factored state has two vectors for a convolution as well.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], make_optimizer: MakeOptimizer, *, seed: int
    ) -> None:
        named = [list(group.parameters.items()) for group in groups]
        rates = [group.learning_rate for group in groups]
        super().__init__([{"params": n, "lr": r} for n, r in zip(named, rates, strict=True)], {})
        device = named[0][0][1].device
        self._seed, self._update = seed, 0
        self._generator = torch.Generator(device)
        self._healthy = torch.ones((), dtype=torch.bool, device=device)
        self._entries: dict[nn.Parameter, _Entry] = {}
        for name, parameter in itertools.chain(*named):
            fp32 = nn.Parameter(torch.empty(0, dtype=torch.float32, device=device))
            self._entries[parameter] = _Entry(name, parameter, fp32, make_optimizer([fp32]))

    def begin(self, step: int, *, healthy: torch.Tensor) -> None:
        """Set the next update's number, which keys its random numbers, and its 0-d bool mask."""
        self._update, self._healthy = step, healthy

    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        assert closure is None, "the loss is not computed again here"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, lr=group["lr"], healthy=self._healthy)

    @torch.no_grad()
    def update(self, parameter: nn.Parameter, *, lr: float, healthy: torch.Tensor) -> None:
        """Update one parameter with its gradient; skip it if `healthy` is false."""
        entry = self._entries[parameter]
        grad = parameter.grad
        assert grad is not None, f"{entry.name} has no gradient"
        fp32 = entry.fp32
        fp32.data = _matrix(parameter.to(torch.float32, copy=True))
        # Zeros keep the state finite; the weight itself is restored below.
        fp32.grad = _matrix(grad.to(torch.float32)).masked_fill(~healthy, 0.0)
        entry.optimizer.param_groups[0]["lr"] = lr
        entry.optimizer.step()
        self.state[parameter] = entry.optimizer.state[fp32]
        after = fp32.data.view_as(parameter)
        fp32.data, fp32.grad = fp32.data.new_empty(0), None
        parameter.copy_(torch.where(healthy, self._rounded(entry, after), parameter))

    def _rounded(self, entry: _Entry, after: torch.Tensor) -> torch.Tensor:
        if entry.parameter.dtype == torch.float32:
            return after
        key = derive_seed(self._seed, f"rounding/{entry.name}", self._update)
        return stochastic_round(after, generator=self._generator.manual_seed(key))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state without casting it to the weights' type, as torch's own method would.

        int64 tensors become Python integers: the libraries count steps in them.
        """
        entries = [self._entries[p] for group in self.param_groups for p in group["params"]]
        for index, quantities in state_dict["state"].items():
            entry = entries[index]
            state = {name: _on_device(value, entry) for name, value in quantities.items()}
            entry.optimizer.state[entry.fp32] = state
            self.state[entry.parameter] = state


def _matrix(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1) if x.ndim > 1 else x


def _on_device(value: Any, entry: _Entry) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.int64:
        return int(value)
    return value.to(entry.parameter.device) if isinstance(value, torch.Tensor) else value
