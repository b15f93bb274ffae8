"""Updates through JAX, for the same loop as `training.trainer.Trainer`.

torch draws rows, noise and timesteps on the CPU, as pure functions of (seed, position), so they
equal those of the torch trainer. The rows of a micro-step are split over all devices; parameters
and moments are replicated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import torch

from dreambooth_core.config import TrainSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.jax.compiled import CompiledSteps, Sums
from dreambooth_core.jax.functional import recompute_through_jax, tensors_of
from dreambooth_core.jax.placement import Placement
from dreambooth_core.jax.refusals import refuse_what_jax_cannot
from dreambooth_core.jax.state import JaxState
from dreambooth_core.models.denoiser import RowsAt
from dreambooth_core.training.checks import RowErrors
from dreambooth_core.training.dropout import uses_dropout
from dreambooth_core.training.step import prepare
from dreambooth_core.training.trainable import TrainableModel
from dreambooth_core.training.trainer import UpdateReport, learning_rate

_CPU = torch.device("cpu")


class JaxTrainer:
    """A `training.trainer.StepTrainer` on all devices of this host.

    Its batches equal those of the torch trainer with one process per device.
    """

    def __init__(
        self, model: TrainableModel, *, settings: TrainSettings, rows_at: RowsAt, state: Path | None
    ) -> None:
        """Resume from the verified state in the folder `state`, or start anew (None).

        Raises SettingsError for settings and networks that JAX cannot train here.
        """
        refuse_what_jax_cannot(settings)
        if uses_dropout(model.denoiser):
            raise SettingsError(
                "the base model has dropout, which would repeat in every step once it is compiled",
                hint="train with train_dreambooth.py",
            )
        self.model = model
        self._settings, self._rows_at = settings, rows_at
        self._rates = [learning_rate(settings, peak=g.learning_rate) for g in model.groups]
        self._placement = Placement(jax.devices())
        recompute_through_jax(model.denoiser)
        self._steps = CompiledSteps(model, settings)
        self.state = JaxState(model, settings=settings, placement=self._placement, state=state)

    @property
    def reading_waits(self) -> bool:
        """Whether the device computes asynchronously: all but the CPU."""
        return jax.default_backend() != "cpu"

    def rate_at(self, step: int) -> float:
        """The U-Net's learning rate in the update after `step` completed ones."""
        return self._rates[0].at(step)

    def accumulate(self, step: int, *, stop: bool) -> UpdateReport:
        """Add up the gradients of the update after `step` completed ones, over all devices."""
        sums: Sums | None = None
        micro_steps: list[RowErrors] = []
        for micro in range(self._settings.gradient_accumulation_steps):
            rows = self._rows_at(self._positions(step, micro))
            inputs = prepare(rows, self.model.loss, device=_CPU)
            new, error_B = self._steps.gradients(
                inputs,
                self.state.parameters,
                self.state.frozen,
                self._placement.by_rows(tensors_of(inputs)),
            )
            sums = new if sums is None else self._steps.add(sums, new)
            micro_steps.append(RowErrors(rows.image_B, inputs.timesteps, _numbers(error_B)))
        assert sums is not None
        trained = np.array([group.is_trained_at(step) for group in self.model.groups])
        values, self.state.gradients = self._steps.finish(*sums, trained, np.float32(stop))
        return UpdateReport(step + 1, _numbers(values), self.rate_at(step), micro_steps)

    def apply(self, report: UpdateReport) -> UpdateReport:
        """Clip and update with the present gradients, unless loss or norm is not finite.

        The device decides, so nothing waits for it.
        """
        held, step = self.state, report.step - 1
        # Without a zero rate, its moments would still move a frozen group.
        rates = [
            rate.at(step) if group.is_trained_at(step) else 0.0
            for rate, group in zip(self._rates, self.model.groups, strict=True)
        ]
        held.parameters, held.moments = self._steps.update(
            held.parameters,
            held.moments,
            held.gradients,
            report.values,
            np.asarray(rates, np.float32),
        )
        return report

    def clear_gradients(self) -> None:
        """Free the gradients."""
        self.state.gradients = None

    def _positions(self, step: int, micro: int) -> range:
        size = self._settings.train_batch_size * self._placement.num_devices
        first = (step * self._settings.gradient_accumulation_steps + micro) * size
        return range(first, first + size)


def _numbers(array: Any) -> torch.Tensor:
    """A JAX array typed as torch's: reports only call `tolist`, which both have."""
    return cast(torch.Tensor, array)
