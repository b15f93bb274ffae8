"""An exponential moving average (EMA) of the trained weights; checkpoints publish the average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


def decay_at(step: int, *, decay: float) -> float:
    """The EMA decay of update number `step` (from 1): min(decay, step / (step + 9)).

    The warm-up keeps the average from staying at the base model for 1 / (1 - decay) updates. It is
    diffusers' EMAModel warm-up from the second update on; diffusers' first decay is 0, here 0.1.
    """
    return min(decay, step / (step + 9))


class MovingAverage:
    """Averages of parameters in fp32, on their devices, starting at their current values."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, decay: float) -> None:
        self._parameters, self._decay = dict(parameters), decay
        self._averages = {
            name: p.detach().to(torch.float32, copy=True) for name, p in parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the weights after update number `step`."""
        weight = 1 - decay_at(step, decay=self._decay)
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name].detach().float(), weight)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages by parameter name, for saving."""
        return self._averages

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load saved averages."""
        assert tensors.keys() == self._averages.keys(), "the averages are of another model"
        for name, average in self._averages.items():
            average.copy_(tensors[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters have the averages; afterwards their own bits again."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])
