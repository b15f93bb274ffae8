"""The training loop: runs updates, reads their numbers, saves checkpoints and runs callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, Protocol

from accelerate import PartialState
from accelerate.utils import gather_object

from dreambooth_core.ports import MetricSink, StopSignal
from dreambooth_core.training import checks, progress
from dreambooth_core.training.checkpoints.saving import CheckpointLayout, Saver
from dreambooth_core.training.checks import MovedParameters
from dreambooth_core.training.job import TrainerExit, TrainJob
from dreambooth_core.training.progress import MetricsRow, ProgressReporter
from dreambooth_core.training.save_request import SaveRequest
from dreambooth_core.training.trainer import StepTrainer, UpdateReport

_MAX_READ_INTERVAL = 10
_MAX_SKIPPED = 30
"""Maximum consecutive updates that the GradScaler may skip; each halves a scale of <= 65,536."""
_MAX_SKIPPED_AT_END = 2
"""The same at the last step: a scale that has just grown overflows at most this often."""


class Callback(Protocol):
    """An action between updates, such as validation images; it runs on every process."""

    def is_due(self, step: int) -> bool:
        """Return whether to run after `step` completed updates."""
        ...

    def on_step_end(self, trainer: StepTrainer, *, step: int) -> None:
        """Run the action without changing the networks."""
        ...


class Loop:
    """Runs one process of a training from its start step to its last step."""

    def __init__(
        self,
        job: TrainJob,
        trainer: StepTrainer,
        *,
        layout: CheckpointLayout,
        sink: MetricSink,
        rows: list[MetricsRow],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._job, self._trainer = job, trainer
        self._rows = rows
        self._unread: list[UpdateReport] = []
        self._layout, self._callbacks = layout, callbacks
        self._saver = Saver(layout, trainer.state, is_async=job.async_checkpointing)
        self._last = job.last_step
        self._is_verified = False
        self._num_skipped = 0
        self._progress = ProgressReporter(job, sink=sink, is_main=PartialState().is_main_process)
        interval = min(_MAX_READ_INTERVAL, job.log_every_steps)
        self._read_every = interval if trainer.reading_waits else 1

    def run(
        self, start: int, *, should_stop: StopSignal, save_request: SaveRequest | None = None
    ) -> TrainerExit:
        """Train from `start` completed updates to the last one, or until a stop is requested.

        A `save_request` is met after the update in progress; it changes nothing else.
        Pending saves are on disk when this returns or raises. Raises StageError for a non-finite
        update or for a parameter that should not have moved, and every error of a save.
        """
        self._progress.begin(start)
        self._layout.begin(self._trainer.state, step=start)
        with self._saver:
            return self._update(start, should_stop, save_request)

    def metrics_table(self) -> str:
        """The metrics of all updates so far, as CSV."""
        return progress.to_csv(self._rows)

    def _update(
        self, step: int, should_stop: StopSignal, save_request: SaveRequest | None
    ) -> TrainerExit:
        last = self._last
        while step < last:
            self._saver.check()
            moved = self._moved_parameters_check(step)
            report = self._trainer.accumulate(step, stop=should_stop())
            if moved is not None:
                moved.record_gradients()
            report = self._trainer.apply(report)
            self._trainer.clear_gradients()
            step += 1
            self._unread.append(report)
            if not (moved or self._must_read(step)):
                continue
            stop = self._read()
            if moved is not None and not report.was_skipped:
                moved.verify()
                self._is_verified = True
            self._progress.report(self._rows)
            is_asked = save_request is not None and save_request.is_made()
            if stop or is_asked or self._layout.is_due(step):
                waits = stop or is_asked or step == last
                self._saver.save(step=step, metrics=self.metrics_table(), waits=waits)
            if save_request is not None and is_asked:
                save_request.answer(step)
            self._run_callbacks(step)
            if stop and step < last:
                return TrainerExit(how="stopped", step=step)
        return TrainerExit(how="done", step=last)

    def _must_read(self, step: int) -> bool:
        logged = step % self._job.log_every_steps == 0
        due = self._layout.is_due(step) or any(v.is_due(step) for v in self._callbacks)
        return step % self._read_every == 0 or logged or due or step == self._last

    def _moved_parameters_check(self, step: int) -> MovedParameters | None:
        """Create the check of the first update with a rate above 0; a warm-up starts at rate 0."""
        if self._is_verified or self._trainer.rate_at(step) == 0:
            return None
        return MovedParameters(self._trainer.state, self._job.train, step=step)

    def _read(self) -> bool:
        """Append a row for each unread report; return whether any process requested a stop."""
        stop = False
        for report in self._unread:
            row, is_finite, stop_requested = _row_of(
                report, has_class=self._job.prior_loss_weight is not None
            )
            self._num_skipped = self._num_skipped + 1 if report.was_skipped else 0
            if not is_finite and not self._is_scaler_overflow(report, row):
                self._fail(report, row)
            self._rows.append(row)
            stop = stop or stop_requested
        self._unread.clear()
        return stop

    def _is_scaler_overflow(self, report: UpdateReport, row: MetricsRow) -> bool:
        """Return whether a non-finite gradient is only an overflow of the fp16 scale.

        The GradScaler fixes an overflow by a smaller scale. A gradient that stays non-finite at
        any scale must stop the run, which would otherwise appear to have trained.
        """
        limit = _MAX_SKIPPED
        if report.step == self._last:
            limit = _MAX_SKIPPED_AT_END if self._is_verified else 0
        loss_is_finite = checks.all_finite(row.loss)
        return report.was_skipped and loss_is_finite and self._num_skipped <= limit

    def _fail(self, report: UpdateReport, row: MetricsRow) -> NoReturn:
        rows = checks.rows_to_report(report.micro_steps)
        if PartialState().num_processes > 1:
            rows = gather_object(rows)
        raise checks.non_finite(
            report.step,
            loss=row.loss,
            grad_norm=row.grad_norm,
            rows=rows,
            skipped=checks.skipped_parameters(report.norms),
        )

    def _run_callbacks(self, step: int) -> None:
        for callback in self._callbacks:
            if callback.is_due(step):
                callback.on_step_end(self._trainer, step=step)


def _row_of(report: UpdateReport, *, has_class: bool) -> tuple[MetricsRow, bool, bool]:
    """Return a report's row, whether its numbers are finite, and whether a stop was requested."""
    loss, instance, class_, stop, grad_norm = report.values.tolist()
    row = MetricsRow(
        step=report.step,
        loss=loss,
        loss_instance=instance,
        loss_class=class_ if has_class else None,
        learning_rate=report.learning_rate,
        grad_norm=grad_norm,
    )
    return row, checks.all_finite(loss, grad_norm), stop > 0
