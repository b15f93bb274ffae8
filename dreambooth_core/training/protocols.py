"""The interfaces of training: strategies, which apply updates, and the sharding of resume states.

All processes of a run must call every method in the same order, because some of them communicate.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from dreambooth_core.config import Strategy as StrategyName
from dreambooth_core.config import TrainSettings
from dreambooth_core.training.trainable import TrainableModel

DEEPSPEED_TAG = "deepspeed"
"""The folder that DeepSpeed writes into."""
DEEPSPEED_PARTS = "*_optim_states.pt"
"""The files in it with each process's moments."""
FSDP_METADATA = ".metadata"
"""The file of torch's distributed checkpoints that lists the shards of each process."""
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


@dataclass(frozen=True)
class UpdateResult:
    """The result of an update, which is skipped if a number is non-finite.

    `grad_norm` (0-d) is the global gradient norm before clipping, without loss scaling.
    `was_skipped` is true if the GradScaler skipped the update to adjust its scale. `norms` has the
    gradient norm (0-d) of each parameter by name if parameters are updated separately; only a
    parameter with a non-finite norm is then skipped.
    """

    grad_norm: torch.Tensor
    was_skipped: bool = False
    norms: Mapping[str, torch.Tensor] = field(default_factory=dict)


class CheckpointSource(Protocol):
    """The weights and state of a run at one step, for a layout to write."""

    model: TrainableModel
    """The model; its tensors may be older than the current weights."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write this process's part of the state that the next update depends on to `folder`."""

    @abstractmethod
    def gathered_weights(self) -> AbstractContextManager[None]:
        """Inside, the networks of the main process have the complete weights to publish."""


class TrainingState(CheckpointSource, Protocol):
    """The weights, gradients and moments of a model, for the loop to read and save."""

    @abstractmethod
    def value(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return the complete parameter; a trained one in the precision of its updates."""

    @abstractmethod
    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """Return the complete gradient, or None if there is none. Call it before `apply`.

        Returns its norm (0-d) if the backward pass has already freed the gradient.
        """

    def snapshot(self) -> CheckpointSource | None:
        """Copy weights and state to host memory; the copy is valid until the next snapshot.

        Returns None if they must be written before the next update: if several processes write
        together or the host has too little memory.
        """
        return None


class Strategy(TrainingState, ABC):
    """A model's optimizer, and the way its processes share the work."""

    wrapped_model: nn.Module
    """The wrapped network; a micro-step calls it with the network's arguments."""
    _optimizer: Optimizer
    """The optimizer whose groups get the learning rates."""

    def __init__(
        self,
        model: TrainableModel,
        *,
        accelerator: Accelerator,
        settings: TrainSettings,
        state: Path | None,
    ) -> None:
        """Resume from the verified state in the folder `state`, or start anew if it is None.

        The optimizer starts anew if other settings wrote the state. Raises SettingsError if a
        library of the strategy is missing.
        """
        self.model, self.accelerator, self.settings = model, accelerator, settings
        self._step = 0
        self._set_up(state)

    @abstractmethod
    def _set_up(self, state: Path | None) -> None:
        """Load the state, wrap the network and build the optimizer."""

    def begin(self, step: int, *, learning_rates: Sequence[float]) -> None:
        """Begin update number `step` (from 1) with one learning rate per parameter group."""
        self._step = step
        for group, rate in zip(self._optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = rate

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """Wrap a forward and backward pass; only the last must synchronize gradients."""
        return contextlib.nullcontext()

    @abstractmethod
    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate the gradients of `loss` (0-d)."""

    @abstractmethod
    def apply(self, loss: torch.Tensor) -> UpdateResult:
        """Clip and apply the gradients; skip the update if they or `loss` are non-finite.

        `loss` (0-d, on the device) is the mean over the processes.
        """

    def drop_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the gradients of parameters that are frozen now. Call it before `apply`."""
        for parameter in parameters:
            parameter.grad = None

    def clear_gradients(self) -> None:
        """Free the gradients."""
        self._optimizer.zero_grad(set_to_none=True)
