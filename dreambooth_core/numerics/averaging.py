"""The exponential moving average of weights: how much of the past it keeps at each update."""

from __future__ import annotations


def decay_at(step: int, *, decay: float) -> float:
    """The decay of update number `step` (from 1): at most `decay`, less while there is little past.

    min(decay, step / (step + 9)): an average that begins at the base model would otherwise stay
    there for 1 / (1 - decay) updates. diffusers' EMAModel warms up likewise from its second update
    on; its first has the decay 0 (here 0.1), so that its average begins at the weights after it.
    """
    return min(decay, step / (step + 9))
