"""Checks that stop a run which would go on without learning, or on broken numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch

from dreambooth_core.errors import StageError
from dreambooth_core.training.protocols import TrainingState

_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHOWN = 5
_PIECE = 1 << 17
"""Numbers that are summed up at once: a whole tensor as int64 would take four times its memory."""

_SURE_MOVES = 30
"""A weight with so many expected moves stays by chance once in e^30."""


class Motion:
    """Whether an update moves what is trained and nothing else: by bit sums before and after it."""

    def __init__(self, state: TrainingState, *, step: int, only: Set[str] | None = None) -> None:
        """Take the sums for the update after `step`, before the forward pass; of all or some."""
        self._only = only
        self._trained = {
            name: parameter
            for name, parameter in state.model.trained_at(step).items()
            if only is None or name in only
        }
        self._sums = self._bit_sums(state)
        self._largest: dict[str, float | None] = {}
        self.still: set[str] = set()
        """Tensors that need not move: their gradients are all within AdamW's epsilon of zero.

        The first factor of a new adapter is such a tensor, as the second is zero.
        """
        self._expected_moves: dict[str, torch.Tensor] = {}
        state.watch(self._expected_moves)

    def _bit_sums(self, state: TrainingState) -> dict[str, torch.Tensor]:
        return {
            name: bit_sum(state.value(parameter))
            for name, parameter in state.model.denoiser.named_parameters()
            if self._only is None or name in self._only
        }

    def see_gradients(self, state: TrainingState, *, epsilon: float) -> None:
        """Note the size of each parameter's gradient, after the backward pass."""
        self._largest = {n: _largest(state.gradient(p)) for n, p in self._trained.items()}
        sizes = self._largest.items()
        self.still = {name for name, size in sizes if size is not None and size <= epsilon}

    def _may_stay(self, name: str) -> bool:
        """Whether a weight may be where it was: without a gradient to speak of, or by chance.

        In bf16 an update below the last bit moves a number with the probability of its part of
        that bit. A small tensor may then stay as a whole; one that no update reached may not.
        """
        expected = self._expected_moves.get(name)
        by_chance = expected is not None and 0 < expected.item() < _SURE_MOVES
        return name in self.still or by_chance

    def verify(self, state: TrainingState) -> None:
        """Raise StageError unless what is trained has moved by its gradient and all else has not.

        Weight decay moves weights without a gradient, so each network must have one somewhere.
        """
        moved, stuck = self._moved_and_stuck(state)
        strayed = sorted(moved - self._trained.keys())
        if without := [name for name, size in self._largest.items() if size is None]:
            _stop("trainable parameters got no gradient", without)
        for part, names in _by(_part_of, self._trained).items():
            if self.still.issuperset(names):
                _stop(f"the gradients of the whole {part} are zero", names)
        if strayed:
            _stop("frozen parameters were changed by the first update", strayed)
        if stuck or not moved:
            _stop(
                "trainable parameters were not moved by the first update",
                stuck or list(self._trained),
                hint="raise train.learning_rate: the update is smaller than their last bit",
            )

    def verify_again(self, state: TrainingState) -> list[str]:
        """Those whose gradient is zero, of tensors that were still before.

        Raises StageError where one has a gradient and does not move, or where all of a kind of an
        adapter's tensors are without one: then half of the adapter learns nothing.
        """
        _, stuck = self._moved_and_stuck(state)
        if stuck:
            _stop("trainable parameters have a gradient and are not moved by it", stuck)
        silent = [name for name, size in self._largest.items() if not size]
        for kind, names in _by(_kind_of, self._trained).items():
            if kind and set(silent).issuperset(names):
                _stop(f"the gradients of every {kind} are zero in a second update, too", names)
        return silent

    def _moved_and_stuck(self, state: TrainingState) -> tuple[set[str], list[str]]:
        """What has moved, and what is trained and has stayed without a reason."""
        state.watch(None)
        after = self._bit_sums(state)
        moved = {name for name, total in self._sums.items() if not torch.equal(total, after[name])}
        return moved, [n for n in self._trained if n not in moved and not self._may_stay(n)]


class Lookout:
    """Which updates are looked at: the first that can move anything, and one more.

    The second is for tensors whose gradient was zero in the first. It comes after the warm-up: a
    rate near zero leaves an adapter's second factor so small that the first has no gradient yet.
    """

    def __init__(self) -> None:
        self._is_first = True
        self._still: set[str] = set()

    @property
    def has_verified(self) -> bool:
        """Whether an update is known to have moved what is trained."""
        return not self._is_first

    def before(self, step: int, state: TrainingState, *, rate: float, rises: bool) -> Motion | None:
        """The sums before the update after `step` of this rate, if it is one to look at."""
        if rate == 0:  # a warm-up begins there
            return None
        if self._is_first:
            return Motion(state, step=step)
        return Motion(state, step=step, only=self._still) if self._still and not rises else None

    def verify(self, motion: Motion, state: TrainingState) -> list[str]:
        """Names of tensors without a gradient in both updates, to be told. Raises StageError."""
        if self._is_first:
            motion.verify(state)
            self._is_first, self._still = False, motion.still
            return []
        self._still = set()
        return motion.verify_again(state)


def _by(key: Callable[[str], str], names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _part_of(name: str) -> str:
    return name.partition(".")[0]


def _kind_of(name: str) -> str:
    """The part and the factor of an adapter's tensor, such as "unet lora_A"; "" for others."""
    found = re.search(r"\.(lora_\w+)\.", name)
    return f"{_part_of(name)} {found[1]}" if found else ""


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


def named(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _stop(what: str, names: Sequence[str], *, hint: str | None = None) -> None:
    raise StageError(
        f"{what}: {named(names)}",
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
