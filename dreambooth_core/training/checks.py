"""Checks that stop a run which would go on without learning, or on broken numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dreambooth_core.errors import StageError
from dreambooth_core.training.updates import HeldState

_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHOWN = 5
_PIECE = 1 << 17
"""Numbers that are summed up at once: a whole tensor as int64 would take four times its memory."""

_SURE_MOVES = 30
"""A weight with so many expected moves stays by chance once in e^30."""


class Motion:
    """Whether an update moves what is trained and nothing else: by bit sums before and after it."""

    def __init__(self, updates: HeldState, *, step: int) -> None:
        """Take the sums for the update after `step`, before the forward pass."""
        self._trained = updates.trainee.trained_at(step)
        self._sums = _bit_sums(updates)
        self._without_gradient: list[str] = []
        self._still: set[str] = set()
        self._expected_moves: dict[str, torch.Tensor] = {}
        updates.watch(self._expected_moves)

    def see_gradients(self, updates: HeldState, *, epsilon: float) -> None:
        """Note which parameters have a gradient, after the backward pass.

        A tensor whose gradients are all within AdamW's `epsilon` of zero is not expected to move
        (the first factor of a new adapter, as the second is zero).
        """
        largest = {n: _largest(updates.gradient(p)) for n, p in self._trained.items()}
        self._without_gradient = [name for name, size in largest.items() if size is None]
        self._still = {n for n, size in largest.items() if size is not None and size <= epsilon}

    def _may_stay(self, name: str) -> bool:
        """Whether a weight may be where it was: without a gradient to speak of, or by chance.

        In bf16 an update below the last bit moves a number with the probability of its part of
        that bit. A small tensor may then stay as a whole; one that no update reached may not.
        """
        expected = self._expected_moves.get(name)
        by_chance = expected is not None and 0 < expected.item() < _SURE_MOVES
        return name in self._still or by_chance

    def verify(self, updates: HeldState) -> None:
        """Raise StageError unless what is trained has moved and what is frozen has not."""
        updates.watch(None)
        after = _bit_sums(updates)
        moved = {name for name, total in self._sums.items() if not torch.equal(total, after[name])}
        stuck = [n for n in self._trained if n not in moved and not self._may_stay(n)]
        strayed = sorted(moved - self._trained.keys())
        if self._without_gradient:
            _stop("trainable parameters got no gradient", self._without_gradient)
        if strayed:
            _stop("frozen parameters were changed by the first update", strayed)
        if stuck or not moved:
            _stop(
                "trainable parameters were not moved by the first update",
                stuck or list(self._trained),
                hint="raise train.learning_rate: the update is smaller than their last bit",
            )


def _bit_sums(updates: HeldState) -> dict[str, torch.Tensor]:
    return {
        name: bit_sum(updates.value(p)) for name, p in updates.trainee.denoiser.named_parameters()
    }


def _largest(gradient: torch.Tensor | None) -> float | None:
    return None if gradient is None else gradient.abs().max().item()


def bit_sum(value: torch.Tensor) -> torch.Tensor:
    """Sum of the bit patterns, each times the square of its place: a 0-d int64 on the device.

    Rounded at random, about as many numbers go up by one bit as go down: a plain sum would often
    come out as it was.
    """
    bits = value.view(_INTEGER_OF_SIZE[value.element_size()]).flatten()
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for first, piece in enumerate(bits.split(_PIECE)):
        places = torch.arange(1, piece.numel() + 1, device=bits.device) + first * _PIECE
        total += places.square_().mul_(piece).sum()
    return total


def _stop(what: str, names: Sequence[str], *, hint: str | None = None) -> None:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise StageError(
        f"{what}: {', '.join(names[:_SHOWN])}{more}",
        got=f"{len(names)} tensors",
        hint=hint or "this is a defect of the training set-up; nothing was saved",
    )


@dataclass(frozen=True)
class RowErrors:
    """What can be said of a micro-step's rows afterwards: names, timesteps, errors [B]."""

    images: tuple[str, ...]
    timesteps: list[int]
    error_B: torch.Tensor

    def culprits(self) -> list[str]:
        """The rows whose error is not finite, each with its timestep."""
        rows = zip(self.images, self.timesteps, self.error_B.tolist(), strict=True)
        return [f"{name} at timestep {t}" for name, t, error in rows if not math.isfinite(error)]

    def rows(self) -> list[str]:
        """All rows, each with its timestep."""
        return [f"{n} at timestep {t}" for n, t in zip(self.images, self.timesteps, strict=True)]


def name_culprits(micro_steps: Sequence[RowErrors]) -> list[str]:
    """The rows that made an update non-finite; all of them when only the gradient is."""
    culprits = [row for micro in micro_steps for row in micro.culprits()]
    return culprits or [row for micro in micro_steps for row in micro.rows()]


def all_finite(*numbers: float) -> bool:
    """Whether none of the numbers is infinite or NaN."""
    return all(math.isfinite(number) for number in numbers)


def not_updated(norms: Mapping[str, torch.Tensor]) -> list[str]:
    """The parameters whose gradient was not finite, of those that were applied one by one."""
    if not norms:
        return []
    fine = torch.isfinite(torch.stack(list(norms.values()))).tolist()
    return [name for name, is_fine in zip(norms, fine, strict=True) if not is_fine]


def non_finite(
    step: int,
    *,
    loss: float,
    grad_norm: float,
    culprits: Sequence[str],
    spared: Sequence[str] = (),
) -> StageError:
    """The error that ends a run at its first non-finite update.

    The update was not applied; where each parameter is updated on its own (`fused_backward`), it
    was applied to all but the `spared`.
    """
    effect = "the weights were not changed by it"
    if spared and math.isfinite(loss):
        shown = f"{', '.join(spared[:_SHOWN])}{' ...' if len(spared) > _SHOWN else ''}"
        effect = (
            f"with fused_backward it has changed all weights but {len(spared)} ({shown}), so the "
            "last checkpoint is the recovery point"
        )
    return StageError(
        f"step {step} has a non-finite {'gradient' if math.isfinite(loss) else 'loss'}; {effect}",
        got=f"loss {loss}, gradient norm {grad_norm}, images: {', '.join(culprits)}",
        hint="look at these images, lower train.learning_rate, or set train.mixed_precision to "
        "'no'; the last saved state is as it was",
    )
