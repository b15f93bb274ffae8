"""One optimizer update: micro-steps, gradient clipping, the guard against non-finite numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dreambooth_core.config import TrainSettings
from dreambooth_core.models.batch import RowsAt
from dreambooth_core.numerics.schedule import LearningRate
from dreambooth_core.training.checks import RowErrors
from dreambooth_core.training.optimizers import (
    begin_update,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)
from dreambooth_core.training.precision import check_types
from dreambooth_core.training.resume import TrainState
from dreambooth_core.training.step import keyed_dropout, loss_of, prepare, uses_dropout
from dreambooth_core.training.trainee import Trainee


@dataclass(frozen=True)
class UpdateReport:
    """What an update left on the device, to be read later: reading waits for the device.

    `values` holds loss, instance loss, class loss, the wish to stop (above 0 when any process has
    it) and the gradient norm.
    """

    step: int
    values: torch.Tensor
    learning_rate: float
    micro_steps: list[RowErrors]


class Trainer:
    """A trainee with its optimizer on the processes of an accelerator."""

    def __init__(
        self,
        trainee: Trainee,
        *,
        accelerator: Accelerator,
        settings: TrainSettings,
        rows_at: RowsAt,
        state: TrainState | None,
    ) -> None:
        self.trainee = trainee
        self._accelerator = accelerator
        self._settings = settings
        self._rows_at = rows_at
        self._rates = [
            learning_rate(settings, peak=group.learning_rate) for group in trainee.groups
        ]
        check_types(trainee.trainable, settings)
        self._raw_optimizer = build_optimizer(trainee, settings)
        if state is not None:
            _restore(trainee, self._raw_optimizer, state)
        model, optimizer = accelerator.prepare(trainee.denoiser, self._raw_optimizer)
        self._model: nn.Module = model
        self._optimizer: AcceleratedOptimizer = optimizer
        if accelerator.scaler is not None and state is not None and state.scaler is not None:
            accelerator.scaler.load_state_dict(state.scaler)
        self._has_dropout = uses_dropout(trainee.denoiser)

    def rate_at(self, step: int) -> float:
        """The U-Net's learning rate in the update after `step` completed ones."""
        return self._rates[0].at(step)

    def accumulate(self, step: int, *, stop: bool) -> UpdateReport:
        """Add up the gradients of the update after `step` completed ones, over all processes."""
        accumulation = self._settings.gradient_accumulation_steps
        device = self._accelerator.device
        sums = torch.zeros(3, device=device)
        micro_steps: list[RowErrors] = []
        for micro in range(accumulation):
            inputs = prepare(
                self._rows_at(self._positions(step, micro)), self.trainee.loss, device=device
            )
            with self._unsynced(last=micro == accumulation - 1), self._dropout(step, micro):
                loss, error_B = loss_of(
                    self._model, inputs, prior_loss_weight=self.trainee.loss.prior_loss_weight
                )
                self._accelerator.backward(loss.total / accumulation)
            sums += torch.stack(loss).detach()
            micro_steps.append(RowErrors(inputs.batch.image_B, inputs.timesteps, error_B))
        self._rest(step)
        wish = torch.tensor([float(stop)], device=device)
        means = self._mean_over_processes(torch.cat([sums / accumulation, wish]))
        values = torch.cat([means, self._grad_norm()[None]])
        return UpdateReport(step + 1, values, self.rate_at(step), micro_steps)

    def apply(self, report: UpdateReport) -> None:
        """Clip and update with the gradients that are there, unless a number is not finite.

        The decision is made on the device, so nothing waits for it.
        """
        grad_norm = report.values[4]
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate.at(report.step - 1)
        if self._settings.max_grad_norm is not None:
            clip_grads_with_norm_(self._parameters(), self._settings.max_grad_norm, grad_norm)
        if self._accelerator.scaler is None:
            healthy = torch.isfinite(report.values[0]) & torch.isfinite(grad_norm)
            begin_update(self._raw_optimizer, step=report.step, healthy=healthy)
        self._optimizer.step()

    def clear_gradients(self) -> None:
        """Drop the gradients and their memory."""
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def was_skipped(self) -> bool:
        """Whether the gradient scaler of fp16 left out the last update (it looks for its scale)."""
        return self._accelerator.optimizer_step_was_skipped

    def state(self, step: int, *, metrics: str) -> TrainState:
        """Everything that the next update depends on."""
        scaler = self._accelerator.scaler
        return TrainState(
            step=step,
            weights={n: p.detach().contiguous() for n, p in self.trainee.trainable.items()},
            optimizer=optimizer_tensors(self._raw_optimizer, list(self.trainee.trainable)),
            scaler=scaler.state_dict() if scaler is not None else None,
            metrics=metrics,
        )

    def _positions(self, step: int, micro: int) -> range:
        """Global sample positions of this process: the same rows for any split of a batch.

        Two processes of batch B, or two micro-steps, see the rows of one of batch 2 B.
        """
        size = self._settings.train_batch_size
        turn = step * self._settings.gradient_accumulation_steps + micro
        first = (turn * self._accelerator.num_processes + self._accelerator.process_index) * size
        return range(first, first + size)

    def _rest(self, step: int) -> None:
        """Drop the gradients of groups that rest: neither the norm nor the update sees them."""
        for group in self.trainee.groups:
            if not group.is_trained_at(step):
                for parameter in group.parameters.values():
                    parameter.grad = None

    def _parameters(self) -> list[nn.Parameter]:
        return list(self.trainee.trainable.values())

    def _grad_norm(self) -> torch.Tensor:
        """Global norm of the gradients before clipping, in units of the loss."""
        self._accelerator.unscale_gradients()
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        return get_total_norm(grads).to(torch.float32)

    def _mean_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        if self._accelerator.num_processes == 1:
            return values
        reduced = self._accelerator.reduce(values, reduction="mean")
        assert isinstance(reduced, torch.Tensor)
        return reduced

    def _unsynced(self, *, last: bool) -> AbstractContextManager[None]:
        """Leave out the exchange of gradients in all micro-steps but the last."""
        return contextlib.nullcontext() if last else self._accelerator.no_sync(self._model)

    @contextlib.contextmanager
    def _dropout(self, step: int, micro: int) -> Iterator[None]:
        if not self._has_dropout:
            yield
            return
        index = (step, micro, self._accelerator.process_index)
        device = self._accelerator.device
        with keyed_dropout(seed=self._settings.seed, index=index, device=device):
            yield


def learning_rate(settings: TrainSettings, *, peak: float) -> LearningRate:
    """The schedule of the settings; steps are optimizer updates, whatever the processes."""
    return LearningRate(
        shape=settings.lr_scheduler,
        peak=peak,
        num_steps=settings.max_train_steps,
        num_warmup_steps=settings.lr_warmup_steps,
        num_cycles=settings.lr_num_cycles,
        power=settings.lr_power,
    )


def _restore(trainee: Trainee, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
    """Put a verified state's weights and moments in place."""
    assert state.weights.keys() == trainee.trainable.keys(), "the state is of another model"
    with torch.no_grad():
        for name, parameter in trainee.trainable.items():
            parameter.copy_(state.weights[name])
    load_optimizer_tensors(optimizer, state.optimizer, names=list(trainee.trainable))
