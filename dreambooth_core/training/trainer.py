"""One optimizer update: its micro-steps, the update itself, and a report of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from dreambooth_core.config import TrainSettings
from dreambooth_core.models.denoiser import RowsAt
from dreambooth_core.numerics.schedule import LearningRate
from dreambooth_core.training.checks import RowErrors
from dreambooth_core.training.dropout import has_unkeyed_dropout, key_by_rows, keyed_dropout
from dreambooth_core.training.protocols import Strategy, TrainingState
from dreambooth_core.training.step import loss_of, prepare
from dreambooth_core.training.trainable import TrainableModel


@dataclass(frozen=True)
class UpdateReport:
    """The numbers of an update, still on the device: reading them waits for the device.

    `values` has shape [4]: loss, instance loss, class loss and stop request (above 0 if any process
    requested a stop). After the update its shape is [5], with the gradient norm last. `was_skipped`
    and `norms` are those of `UpdateResult`.
    """

    step: int
    values: torch.Tensor
    learning_rate: float
    micro_steps: list[RowErrors]
    was_skipped: bool = False
    norms: Mapping[str, torch.Tensor] = field(default_factory=dict)


class StepTrainer(Protocol):
    """The interface that the loop uses to run updates, on any device."""

    @property
    def state(self) -> TrainingState:
        """The weights, gradients and moments."""
        ...

    @property
    def model(self) -> TrainableModel:
        """The trained model; it has the current weights inside `state.gathered_weights()`."""
        ...

    @property
    def reading_waits(self) -> bool:
        """Whether reading a number waits for a device that computes asynchronously."""
        ...

    def rate_at(self, step: int) -> float:
        """Return the U-Net's learning rate in the update after `step` completed ones."""
        ...

    def accumulate(self, step: int, *, stop: bool) -> UpdateReport:
        """Add up the gradients of the update after `step` completed ones."""
        ...

    def apply(self, report: UpdateReport) -> UpdateReport:
        """Apply the update unless a number is non-finite; return the completed report."""
        ...

    def clear_gradients(self) -> None:
        """Free the gradients."""
        ...


class Trainer:
    """Runs updates of a model with a strategy on the processes of an accelerator."""

    def __init__(self, strategy: Strategy, *, rows_at: RowsAt) -> None:
        self.model, self._strategy = strategy.model, strategy
        self.state: TrainingState = strategy
        self._accelerator, settings = strategy.accelerator, strategy.settings
        self._settings, self._rows_at = settings, rows_at
        self._rates = [
            learning_rate(settings, peak=group.learning_rate) for group in self.model.groups
        ]
        self._dropped_rows = key_by_rows(self.model.denoiser, seed=settings.seed)
        self._has_unkeyed_dropout = has_unkeyed_dropout(self.model.denoiser)

    @property
    def reading_waits(self) -> bool:
        """Whether the device is a GPU, which computes asynchronously."""
        return self._accelerator.device.type != "cpu"

    def rate_at(self, step: int) -> float:
        """Return the U-Net's learning rate in the update after `step` completed ones."""
        return self._rates[0].at(step)

    def accumulate(self, step: int, *, stop: bool) -> UpdateReport:
        """Add up the gradients of the update after `step` completed ones, over all processes."""
        accumulation = self._settings.gradient_accumulation_steps
        device = self._accelerator.device
        self._strategy.begin(step + 1, learning_rates=self._rates_of(step))
        sums = torch.zeros(3, device=device)
        micro_steps: list[RowErrors] = []
        for micro in range(accumulation):
            last = micro == accumulation - 1
            inputs = prepare(
                self._rows_at(self._positions(step, micro)), self.model.loss, device=device
            )
            batch = inputs.batch
            self._dropped_rows.keys = list(zip(batch.is_class_B, batch.position_B, strict=True))
            with self._strategy.micro_step(last=last), self._unkeyed_dropout(step, micro):
                loss, error_B = loss_of(
                    self._strategy.wrapped_model,
                    inputs,
                    prior_loss_weight=self.model.loss.prior_loss_weight,
                )
                self._strategy.backward(loss.total / accumulation, last=last)
            sums += torch.stack(loss).detach()
            micro_steps.append(RowErrors(inputs.batch.image_B, inputs.timesteps, error_B))
        self._drop_frozen_gradients(step)
        stop_request = torch.tensor([float(stop)], device=device)
        means = self._mean_over_processes(torch.cat([sums / accumulation, stop_request]))
        return UpdateReport(step + 1, means, self.rate_at(step), micro_steps)

    def apply(self, report: UpdateReport) -> UpdateReport:
        """Apply the update unless a number is non-finite; return the completed report."""
        applied = self._strategy.apply(report.values[0])
        values = torch.cat([report.values, applied.grad_norm[None]])
        return replace(report, values=values, was_skipped=applied.was_skipped, norms=applied.norms)

    def clear_gradients(self) -> None:
        """Free the gradients."""
        self._strategy.clear_gradients()

    def _positions(self, step: int, micro: int) -> range:
        """Return this process's global sample positions: the same rows for any split of a batch.

        Two processes or two micro-steps with batch size B read the rows of one with 2 B.
        """
        size = self._settings.train_batch_size
        index = step * self._settings.gradient_accumulation_steps + micro
        first = (index * self._accelerator.num_processes + self._accelerator.process_index) * size
        return range(first, first + size)

    def _rates_of(self, step: int) -> list[float]:
        """Return one rate per group; 0 if frozen, because a fused backward pass updates at once."""
        groups = zip(self.model.groups, self._rates, strict=True)
        return [rate.at(step) if group.is_trained_at(step) else 0.0 for group, rate in groups]

    def _drop_frozen_gradients(self, step: int) -> None:
        """Drop the gradients of frozen groups, so that norm and update ignore them."""
        for group in self.model.groups:
            if not group.is_trained_at(step):
                self._strategy.drop_gradients(group.parameters.values())

    def _mean_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        if self._accelerator.num_processes == 1:
            return values
        reduced = self._accelerator.reduce(values, reduction="mean")
        assert isinstance(reduced, torch.Tensor)
        return reduced

    @contextlib.contextmanager
    def _unkeyed_dropout(self, step: int, micro: int) -> Iterator[None]:
        """Seed CLIP's own dropout: resume is exact, but the masks depend on the batch split."""
        if not self._has_unkeyed_dropout:
            yield
            return
        index = (step, micro, self._accelerator.process_index)
        device = self._accelerator.device
        with keyed_dropout(seed=self._settings.seed, index=index, device=device):
            yield


def learning_rate(settings: TrainSettings, *, peak: float) -> LearningRate:
    """Build the schedule of the settings; its steps are optimizer updates."""
    return LearningRate(
        shape=settings.lr_scheduler,
        peak=peak,
        num_steps=settings.max_train_steps,
        num_warmup_steps=settings.lr_warmup_steps,
        num_cycles=settings.lr_num_cycles,
        power=settings.lr_power,
    )
