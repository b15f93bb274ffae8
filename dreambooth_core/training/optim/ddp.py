"""Updates with complete weights in every process: one device, or DDP over several."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dreambooth_core.config import TrainSettings
from dreambooth_core.training.optim.adamw import (
    begin_update,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)
from dreambooth_core.training.optim.ema import MovingAverage
from dreambooth_core.training.optim.snapshot import Snapshots, StateFiles
from dreambooth_core.training.precision import check_types
from dreambooth_core.training.protocols import CheckpointSource, Strategy, UpdateResult
from dreambooth_core.training.trainable import TrainableModel

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
_SCALER = "scaler.json"
_AVERAGE = "average.safetensors"


class DdpStrategy(Strategy):
    """The optimizer of the settings over whole parameters; DDP averages the gradients."""

    def _set_up(self, state: Path | None) -> None:
        """Moments and loss scale start anew if the state has none: other settings wrote it."""
        model, accelerator, settings = self.model, self.accelerator, self.settings
        check_types(model.trainable, settings)
        self._raw_optimizer = build_optimizer(model, settings)
        if state is not None:
            self._restore(state)
        if accelerator.scaler is not None:
            # The fused kernel would skip an overflow unseen; the scaler reports it.
            self._raw_optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
        self._average = _average_of(model, settings, state)
        self._snapshots = Snapshots(model)
        wrapped, optimizer = accelerator.prepare(model.denoiser, self._raw_optimizer)
        self.wrapped_model, self._optimizer = wrapped, optimizer
        if accelerator.scaler is not None and state is not None and (state / _SCALER).is_file():
            accelerator.scaler.load_state_dict(json.loads((state / _SCALER).read_bytes()))

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        """Synchronize the gradients of the processes only in the last micro-step."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped_model)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate the gradients of `loss`; the last call removes the loss scale of fp16."""
        self.accelerator.backward(loss)
        if last:
            self.accelerator.unscale_gradients()

    def apply(self, loss: torch.Tensor) -> UpdateResult:
        """Clip and update. The device decides about a skip, so nothing waits for it."""
        grad_norm = self._grad_norm()
        if self.settings.max_grad_norm is not None:
            clip_grads_with_norm_(self._parameters(), self.settings.max_grad_norm, grad_norm)
        if self.accelerator.scaler is None:
            healthy = torch.isfinite(loss) & torch.isfinite(grad_norm)
            begin_update(self._raw_optimizer, step=self._step, healthy=healthy)
        self._optimizer.step()
        self._follow()
        return UpdateResult(grad_norm, was_skipped=self.accelerator.optimizer_step_was_skipped)

    def _follow(self) -> None:
        """Update the average with the new weights."""
        if self._average is not None:
            self._average.update(self._step)

    def value(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return the parameter itself."""
        return parameter.detach()

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """Return the gradient itself."""
        return parameter.grad

    def save(self, folder: Path) -> None:
        """Write the state in the main process; all processes have the same one."""
        if self.accelerator.is_main_process:
            self._state().write(folder)

    def snapshot(self) -> CheckpointSource | None:
        """Copy the state if there is one process; several must write between two updates."""
        if self.accelerator.num_processes > 1:
            return None
        published = WEIGHTS if self._average is None else _AVERAGE
        return self._snapshots.take(self._state(), published=published)

    def _state(self) -> StateFiles:
        names = list(self.model.trainable)
        tensors = {
            WEIGHTS: {n: p.detach().contiguous() for n, p in self.model.trainable.items()},
            OPTIMIZER: optimizer_tensors(self._raw_optimizer, names),
        }
        if self._average is not None:
            tensors[_AVERAGE] = self._average.tensors
        scaler = self.accelerator.scaler
        return StateFiles(tensors, {} if scaler is None else {_SCALER: scaler.state_dict()})

    def gathered_weights(self) -> AbstractContextManager[None]:
        """The networks have complete weights; if there is an average, it replaces them inside."""
        return contextlib.nullcontext() if self._average is None else self._average.in_place()

    def _parameters(self) -> list[nn.Parameter]:
        return list(self.model.trainable.values())

    def _grad_norm(self) -> torch.Tensor:
        """Return the global gradient norm (0-d) before clipping, without loss scaling."""
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        return global_norm(grads)

    def _restore(self, folder: Path) -> None:
        """Load weights and moments from a verified state."""
        self.model.put(load_file(folder / WEIGHTS))
        if (folder / OPTIMIZER).is_file():
            tensors, names = load_file(folder / OPTIMIZER), list(self.model.trainable)
            load_optimizer_tensors(self._raw_optimizer, tensors, names=names)


def read_bare_weights(state: Path | None) -> dict[str, torch.Tensor]:
    """Return the complete weights in a state; empty if it is sharded or None."""
    if state is None or not (state / WEIGHTS).is_file():
        return {}
    return load_file(state / WEIGHTS)


def global_norm(grads: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all gradients (0-d) in fp32; a sum in bf16 would have two digits."""
    if all(grad.dtype == torch.float32 for grad in grads):
        return get_total_norm(grads)  # the same, in fewer launches
    return torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads])
    )


def _average_of(
    model: TrainableModel, settings: TrainSettings, state: Path | None
) -> MovingAverage | None:
    """Restore the average of the state, or start one at the current weights."""
    if settings.ema_decay is None:
        return None
    average = MovingAverage(model.trainable, decay=settings.ema_decay)
    if state is not None and (state / _AVERAGE).is_file():
        average.restore(load_file(state / _AVERAGE))
    return average
