"""Checks that stop a run that does not learn or has non-finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dreambooth_core.config import TrainSettings
from dreambooth_core.errors import StageError
from dreambooth_core.training.protocols import TrainingState
from dreambooth_core.training.trainable import ParameterGroup

_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHOWN = 5
_CHUNK = 1 << 17
"""Numbers summed at once: as int64, a whole tensor would take up to four times its memory."""


class MovedParameters:
    """Checks that one update moves what it trains, by its gradients, and nothing else.

    Compares checksums of all parameters from before and after the update, so it needs no copy of
    the weights. Create it before the forward pass: a fused backward pass already updates.
    """

    def __init__(self, state: TrainingState, train: TrainSettings, *, step: int) -> None:
        """Take the checksums before the update that follows `step` completed ones."""
        self._state, self._train = state, train
        self._groups = [group for group in state.model.groups if group.is_trained_at(step)]
        self._before = self._checksums()
        self._largest: dict[str, float] = {}

    def record_gradients(self) -> None:
        """Record each trained parameter's largest gradient, between backward pass and update.

        Raises StageError if a parameter has none.
        """
        parameters = {name: p for group in self._groups for name, p in group.parameters.items()}
        gradients = {name: self._state.gradient(p) for name, p in parameters.items()}
        if missing := [name for name, gradient in gradients.items() if gradient is None]:
            _stop("trainable parameters got no gradient", missing)
        self._largest = {n: g.abs().max().item() for n, g in gradients.items() if g is not None}

    def verify(self) -> None:
        """Raise StageError if a trained network did not learn or a frozen parameter moved.

        Weight decay moves weights that have no gradient, so every network needs a gradient.
        """
        after = self._checksums()
        moved = {n for n, total in self._before.items() if not torch.equal(total, after[n])}
        for group in self._groups:
            if not self._with_gradient(group):
                _stop(f"the gradients of the whole {group.part} are zero", list(group.parameters))
        if strayed := sorted(moved - self._largest.keys()):
            _stop("frozen parameters were changed by the first update", strayed)
        for group in self._groups:
            learning = self._with_gradient(group)
            stuck = [name for name in learning if name not in moved]
            # By chance, stochastic rounding to bf16 leaves small tensors unchanged, never most.
            share = _num_weights(group, stuck) / _num_weights(group, learning)
            if share > (0 if self._train.weight_dtype == "fp32" else 0.5):
                _stop(
                    "trainable parameters were not moved by the first update",
                    stuck,
                    hint="raise learning_rate: the update is smaller than their last bit",
                )

    def _with_gradient(self, group: ParameterGroup) -> list[str]:
        """Names of the parameters whose gradient exceeds AdamW's epsilon (NaN counts too).

        The first factor of a new adapter has a zero gradient, because the second factor is zero.
        """
        epsilon = self._train.adam_epsilon
        return [name for name in group.parameters if not self._largest[name] <= epsilon]

    def _checksums(self) -> dict[str, torch.Tensor]:
        named = self._state.model.denoiser.named_parameters()
        return {name: checksum(self._state.value(parameter)) for name, parameter in named}


def _num_weights(group: ParameterGroup, names: Sequence[str]) -> int:
    return sum(group.parameters[name].numel() for name in names)


def checksum(value: torch.Tensor) -> torch.Tensor:
    """Sum of all bit patterns, each times its squared position: a 0-d int64 on the device.

    Stochastic rounding moves about as many numbers up by one bit as down; an unweighted sum would
    often miss that.
    """
    bits = value.view(_INTEGER_OF_SIZE[value.element_size()]).flatten()
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for index, chunk in enumerate(bits.split(_CHUNK)):
        positions = torch.arange(1, chunk.numel() + 1, device=bits.device) + index * _CHUNK
        total += positions.square_().mul_(chunk).sum()
    return total


def _named(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _stop(what: str, names: Sequence[str], *, hint: str | None = None) -> None:
    raise StageError(
        f"{what}: {_named(names)}",
        got=f"{len(names)} tensors",
        hint=hint or "this is a bug in the training setup; nothing was saved",
    )


@dataclass(frozen=True)
class RowErrors:
    """The image names, timesteps and errors [B] of a micro-step's rows, for error messages."""

    images: tuple[str, ...]
    timesteps: list[int]
    error_B: torch.Tensor

    def non_finite_rows(self) -> list[str]:
        """Name the rows with a non-finite error, each with its timestep."""
        rows = zip(self.images, self.timesteps, self.error_B.tolist(), strict=True)
        return [f"{name} at timestep {t}" for name, t, error in rows if not math.isfinite(error)]

    def rows(self) -> list[str]:
        """Name all rows, each with its timestep."""
        return [f"{n} at timestep {t}" for n, t in zip(self.images, self.timesteps, strict=True)]


def rows_to_report(micro_steps: Sequence[RowErrors]) -> list[str]:
    """Name the rows with a non-finite error, or all rows if only the gradient is non-finite."""
    bad = [row for micro in micro_steps for row in micro.non_finite_rows()]
    return bad or [row for micro in micro_steps for row in micro.rows()]


def all_finite(*numbers: float) -> bool:
    """Return whether no number is infinite or NaN."""
    return all(math.isfinite(number) for number in numbers)


def skipped_parameters(norms: Mapping[str, torch.Tensor]) -> list[str]:
    """Name the parameters with a non-finite gradient norm (0-d), which a fused backward skipped."""
    if not norms:
        return []
    finite = torch.isfinite(torch.stack(list(norms.values()))).tolist()
    return [name for name, is_finite in zip(norms, finite, strict=True) if not is_finite]


def non_finite(
    step: int,
    *,
    loss: float,
    grad_norm: float,
    rows: Sequence[str],
    skipped: Sequence[str] = (),
) -> StageError:
    """Build the error for a non-finite update.

    The update was not applied. With `fused_backward`, which updates each parameter separately, it
    was applied to all parameters except the `skipped` ones.
    """
    effect = "the update was not applied"
    if skipped and math.isfinite(loss):
        effect = (
            f"fused_backward has already updated all parameters except {_named(skipped)}; "
            "continue from the last checkpoint"
        )
    return StageError(
        f"step {step} has a non-finite {'gradient' if math.isfinite(loss) else 'loss'}; {effect}",
        got=f"loss {loss}, gradient norm {grad_norm}, images: {', '.join(rows)}",
        hint="inspect these images, lower learning_rate, or set mixed_precision to "
        "'no'; the last saved state is intact",
    )
