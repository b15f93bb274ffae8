"""The interfaces of training: how gradients become updates, and how a resume state is sharded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from dreambooth_core.config import Strategy as StrategyName
from dreambooth_core.training.trainable import TrainableModel

DEEPSPEED_TAG = "deepspeed"
"""The folder that DeepSpeed writes into."""
DEEPSPEED_PARTS = "*_optim_states.pt"
"""The files in it with each process's moments."""
FSDP_METADATA = ".metadata"
"""The file of torch's distributed checkpoints that says which process has written what."""
_NAMES = {None: "whole weights", "deepspeed": "DeepSpeed", "fsdp": "FSDP2"}


@dataclass(frozen=True)
class StateKind:
    """How a resume state is sharded; `num_processes` if only that many processes can read it."""

    strategy: str | None
    num_processes: int | None = None

    @property
    def is_split(self) -> bool:
        """Whether reading the weights takes all the processes that wrote them."""
        return self.strategy is not None

    def __str__(self) -> str:
        number = f" of num_processes {self.num_processes}" if self.num_processes else ""
        return f"{_NAMES[self.strategy]}{number}"


def launch_state_kind(strategy: StrategyName, *, num_processes: int) -> StateKind:
    """The kind of resume state that a run with this strategy writes and reads."""
    if strategy == "deepspeed":
        return StateKind("deepspeed", num_processes)
    return StateKind("fsdp" if strategy == "fsdp" else None)


def saved_state_kind(state: Path) -> StateKind:
    """The kind of the resume state in a folder."""
    engine = state / DEEPSPEED_TAG
    if engine.is_dir():
        return StateKind("deepspeed", len(list(engine.glob(DEEPSPEED_PARTS))))
    return StateKind("fsdp" if (state / FSDP_METADATA).is_file() else None)


# Every method is called on all processes of a run, in the same order: some of them exchange data.


@dataclass(frozen=True)
class Applied:
    """An update that was made, or left out as a number was not finite.

    `grad_norm` is that of all gradients before clipping, in units of the loss. `was_skipped`: the
    gradient scaler of fp16 left the update out while it looked for its scale. `norms`: those of
    the gradients that were applied one by one, by the parameter's name; a parameter whose norm is
    not finite was left out alone.
    """

    grad_norm: torch.Tensor
    was_skipped: bool = False
    norms: Mapping[str, torch.Tensor] = field(default_factory=dict)


class CheckpointSource(Protocol):
    """What a run has made by a step: what a layout writes."""

    @property
    def model(self) -> TrainableModel:
        """The model; its own tensors need not be those of now."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that the next update depends on into `folder`: each process its part."""
        ...

    def gathered_weights(self) -> AbstractContextManager[None]:
        """Inside, the main process has the weights to publish whole in the model's networks."""
        ...


class TrainingState(CheckpointSource, Protocol):
    """Where the weights and moments of a model are: what a loop may look at and save."""

    def value(self, parameter: nn.Parameter) -> torch.Tensor:
        """The whole of a parameter; of a trained one in the precision that is updated."""
        ...

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """The whole of a parameter's gradient, or None where there is none. Before `apply`.

        Where gradients are freed at once, their norm stands for them, as one number.
        """
        ...

    def snapshot(self) -> CheckpointSource | None:
        """A copy of the outcome in the host's memory, good until the next is taken.

        None where it must be written before the next update: as the processes write it together,
        or as there is no room for a copy.
        """
        ...


class Strategy(TrainingState, Protocol):
    """A model's optimizer, and how its processes share the work."""

    wrapped_model: nn.Module
    """What a micro-step calls, with the arguments of the network it stands for."""

    def begin(self, step: int, *, learning_rates: Sequence[float]) -> None:
        """Begin the update that makes `step` completed ones; a rate for each of the groups."""
        ...

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward pass; gradients may stay local in all but the last."""
        ...

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of `loss`."""
        ...

    def apply(self, loss: torch.Tensor) -> Applied:
        """Clip and update with the gradients that are there, unless they or `loss` are not finite.

        `loss` is the mean over the processes, on the device. Nothing moves in an update left out.
        """
        ...

    def drop_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the gradients of parameters that rest in this update. Before `apply`."""
        ...

    def clear_gradients(self) -> None:
        """Drop the gradients and their memory."""
        ...
