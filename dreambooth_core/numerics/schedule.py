"""The learning rate as a pure function of the step, so that nothing of it needs to be saved."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dreambooth_core.config import LrScheduler

_POLYNOMIAL_END = 1e-7  # the rate at which diffusers' polynomial schedule ends


@dataclass(frozen=True)
class LearningRate:
    """Learning rate of each update, with the shapes and values of diffusers' schedules.

    All counts are optimizer updates, whatever the number of processes and micro-steps.
    """

    shape: LrScheduler
    peak: float
    num_steps: int
    num_warmup_steps: int = 0
    num_cycles: int = 1
    power: float = 1.0

    def at(self, step: int) -> float:
        """The rate of the update after `step` completed ones."""
        if self.shape == "constant":
            return self.peak
        if step < self.num_warmup_steps:
            return self.peak * step / self.num_warmup_steps
        if self.shape == "constant_with_warmup":
            return self.peak
        length = max(1, self.num_steps - self.num_warmup_steps)
        return self._decayed(min(1.0, (step - self.num_warmup_steps) / length))

    def _decayed(self, progress: float) -> float:
        """The rate at `progress` (0 to 1) of the way from the warm-up to the last update."""
        match self.shape:
            case "cosine":
                return self.peak * 0.5 * (1 + math.cos(math.pi * progress))
            case "cosine_with_restarts":
                turn = (self.num_cycles * progress) % 1.0
                return self.peak * 0.5 * (1 + math.cos(math.pi * turn)) if progress < 1 else 0.0
            case "polynomial":
                span = self.peak - _POLYNOMIAL_END
                return span * (1 - progress) ** self.power + _POLYNOMIAL_END
            case _:
                return self.peak * (1 - progress)
