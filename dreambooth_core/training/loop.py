"""The training loop: updates, what is read of them, and when their outcome is saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, Protocol

from accelerate import Accelerator
from accelerate.utils import gather_object

from dreambooth_core.ports import MetricSink, StopSignal
from dreambooth_core.training import checks, progress
from dreambooth_core.training.checkpoints.layout import CheckpointLayout, Saver
from dreambooth_core.training.checks import MovedParameters
from dreambooth_core.training.job import Ended, TrainJob
from dreambooth_core.training.progress import MetricsRow, ProgressReporter
from dreambooth_core.training.trainer import StepTrainer, UpdateReport

_READ_AT_MOST_EVERY = 10
_MOST_LEFT_OUT = 30
"""Updates in a row that fp16's scaler may leave out: each halves a scale of 65,536 or less."""
_MOST_LEFT_OUT_LAST = 2
"""The same at the end of a run: more is no overflow of a scale that has just grown."""


class Callback(Protocol):
    """Looks at the networks between updates (validation pictures); called on every process."""

    def is_due(self, step: int) -> bool:
        """Whether to come after `step`."""
        ...

    def on_step_end(self, trainer: StepTrainer, *, step: int) -> None:
        """Look; the networks must be left as they were."""
        ...


class Loop:
    """A run from its start step to its last, on one of its processes."""

    def __init__(
        self,
        job: TrainJob,
        trainer: StepTrainer,
        *,
        accelerator: Accelerator,
        layout: CheckpointLayout,
        sink: MetricSink,
        rows: list[MetricsRow],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._job, self._trainer, self._accelerator = job, trainer, accelerator
        self._rows = rows
        self._unread: list[UpdateReport] = []
        self._layout, self._callbacks = layout, callbacks
        self._saver = Saver(layout, trainer, beside=job.async_checkpointing)
        self._last = job.train.max_train_steps
        self._is_verified = False
        self._left_out = 0
        self._progress = ProgressReporter(job, sink=sink, is_main=accelerator.is_main_process)
        at_most = min(_READ_AT_MOST_EVERY, job.log_every_steps)
        self._read_every = at_most if trainer.reading_waits else 1

    def run(self, start: int, *, should_stop: StopSignal) -> Ended:
        """Train from `start` completed updates to the last one, or until a stop is asked for.

        Raises StageError at the first non-finite update and when the wrong parameters move, and
        what a save raises. What was saved is on the disk in the end, however the run ends.
        """
        self._progress.begin(start)
        self._layout.begin(self._trainer.state, step=start)
        with self._saver:
            return self._update(start, should_stop)

    def metrics_table(self) -> str:
        """The metrics of all updates up to now, as CSV."""
        return progress.to_csv(self._rows)

    def _update(self, step: int, should_stop: StopSignal) -> Ended:
        last = self._last
        while step < last:
            self._saver.check()
            moved = self._check_of_update(step)
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
            self._progress.tell(self._rows)
            if stop or self._layout.is_due(step):
                goes_on = not stop and step < last
                self._saver.save(step=step, metrics=self.metrics_table(), goes_on=goes_on)
            self._run_callbacks(step)
            if stop and step < last:
                return Ended(how="stopped", step=step)
        return Ended(how="done", step=last)

    def _must_read(self, step: int) -> bool:
        logged = step % self._job.log_every_steps == 0
        due = self._layout.is_due(step) or any(v.is_due(step) for v in self._callbacks)
        return step % self._read_every == 0 or logged or due or step == self._last

    def _check_of_update(self, step: int) -> MovedParameters | None:
        """The check of the first update that can move anything: a warm-up begins at rate 0."""
        if self._is_verified or self._trainer.rate_at(step) == 0:
            return None
        return MovedParameters(self._trainer.state, self._job.train, step=step)

    def _read(self) -> bool:
        """Turn what is unread into rows; whether any process wants to stop."""
        stop = False
        for report in self._unread:
            row, healthy, wish = _row_of(report, has_class=self._job.prior_loss_weight is not None)
            self._left_out = self._left_out + 1 if report.was_skipped else 0
            if not healthy and not self._may_be_left_out(report, row):
                self._fail(report, row)
            self._rows.append(row)
            stop = stop or wish
        self._unread.clear()
        return stop

    def _may_be_left_out(self, report: UpdateReport, row: MetricsRow) -> bool:
        """Whether an update that is not finite is an overflow of fp16's scale, and no more.

        A smaller scale mends an overflow. A gradient that is not finite at any scale stays so, and
        a run must not end as if it had trained.
        """
        at_most = _MOST_LEFT_OUT
        if report.step == self._last:
            at_most = _MOST_LEFT_OUT_LAST if self._is_verified else 0
        finite = checks.all_finite(row.loss)
        return report.was_skipped and finite and self._left_out <= at_most

    def _fail(self, report: UpdateReport, row: MetricsRow) -> NoReturn:
        culprits = checks.name_culprits(report.micro_steps)
        if self._accelerator.num_processes > 1:
            culprits = gather_object(culprits)
        raise checks.non_finite(
            report.step,
            loss=row.loss,
            grad_norm=row.grad_norm,
            culprits=culprits,
            spared=checks.not_updated(report.norms),
        )

    def _run_callbacks(self, step: int) -> None:
        for callback in self._callbacks:
            if callback.is_due(step):
                callback.on_step_end(self._trainer, step=step)


def _row_of(report: UpdateReport, *, has_class: bool) -> tuple[MetricsRow, bool, bool]:
    """The row of a report, whether its numbers are finite, and whether a stop was wished for."""
    loss, instance, class_, wish, grad_norm = report.values.tolist()
    row = MetricsRow(
        step=report.step,
        loss=loss,
        loss_instance=instance,
        loss_class=class_ if has_class else None,
        learning_rate=report.learning_rate,
        grad_norm=grad_norm,
    )
    return row, checks.all_finite(loss, grad_norm), wish > 0
