"""The training loop: updates, what is read of them, and when their outcome is saved."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from accelerate import Accelerator
from accelerate.utils import gather_object

from dreambooth_core.models.lora import write_adapter
from dreambooth_core.models.weights import write_unet
from dreambooth_core.ports import MetricSink, StopSignal
from dreambooth_core.training import checks, metrics, published, resume
from dreambooth_core.training.checks import Motion
from dreambooth_core.training.job import Ended, TrainJob
from dreambooth_core.training.metrics import MetricsRow
from dreambooth_core.training.narrator import Narrator
from dreambooth_core.training.trainer import Trainer, UpdateReport

_READ_AT_MOST_EVERY = 10


class Loop:
    """A run from its start step to its last, on one of its processes."""

    def __init__(
        self,
        job: TrainJob,
        trainer: Trainer,
        *,
        accelerator: Accelerator,
        sink: MetricSink,
        rows: list[MetricsRow],
    ) -> None:
        self._job, self._trainer, self._accelerator = job, trainer, accelerator
        self.rows = rows
        self._unread: list[UpdateReport] = []
        self._published = set(job.published_steps())
        self._motion_is_checked = False
        self._narrator = Narrator(job, sink=sink, is_main=accelerator.is_main_process)
        # A CPU has every number at once; a GPU would have to be waited for.
        on_cpu = accelerator.device.type == "cpu"
        self._read_every = 1 if on_cpu else min(_READ_AT_MOST_EVERY, job.log_every_steps)

    def run(self, start: int, *, should_stop: StopSignal) -> Ended:
        """Train from `start` completed updates to the last one, or until a stop is asked for.

        Raises StageError at the first non-finite update and when the wrong parameters move.
        """
        step, last = start, self._job.train.max_train_steps
        self._narrator.begin(start)
        self._publish(step)
        while step < last:
            report = self._trainer.accumulate(step, stop=should_stop())
            motion = self._motion_before(step)
            self._trainer.apply(report)
            self._trainer.clear_gradients()
            step += 1
            self._count_executed(step)
            self._unread.append(report)
            if not (motion or self._must_read(step)):
                continue
            stop = self._read()
            self._verify(motion)
            self._narrator.tell(self.rows)
            if stop or self._must_save(step):
                self._save(step)
            if stop and step < last:
                return Ended(how="stopped", step=step)
        return Ended(how="done", step=last)

    def _must_save(self, step: int) -> bool:
        train = self._job.train
        return step % train.checkpointing_steps == 0 or step == train.max_train_steps

    def _must_read(self, step: int) -> bool:
        logged = step % self._job.log_every_steps == 0
        return step % self._read_every == 0 or logged or self._must_save(step)

    def _motion_before(self, step: int) -> Motion | None:
        """Bit sums before the first update that can move anything (a warm-up begins at rate 0)."""
        if self._motion_is_checked or self._trainer.rate_at(step) == 0:
            return None
        return Motion.before(self._trainer.trainee, epsilon=self._job.train.adam_epsilon)

    def _verify(self, motion: Motion | None) -> None:
        if motion is not None and not self._trainer.was_skipped:
            motion.verify(self._trainer.trainee)
            self._motion_is_checked = True

    def _read(self) -> bool:
        """Turn what is unread into rows; whether any process wants to stop."""
        stop = False
        for report in self._unread:
            row, healthy, wish = _row_of(report, has_class=self._job.prior_loss_weight is not None)
            if not healthy and not self._trainer.was_skipped:
                self._fail(report, row)
            self.rows.append(row)
            stop = stop or wish
        self._unread.clear()
        return stop

    def _fail(self, report: UpdateReport, row: MetricsRow) -> NoReturn:
        culprits = checks.name_culprits(report.micro_steps)
        if self._accelerator.num_processes > 1:
            culprits = gather_object(culprits)
        raise checks.non_finite(
            report.step, loss=row.loss, grad_norm=row.grad_norm, culprits=culprits
        )

    def _count_executed(self, step: int) -> None:
        """One line per update, over all attempts: how much work kills have cost."""
        if self._accelerator.is_main_process:
            with self._job.executed_log.open("a") as log:
                log.write(f"{step}\n")

    def _save(self, step: int) -> None:
        self._publish(step)
        if self._accelerator.is_main_process:
            resume.save_state(
                self._job.resume_dir,
                self._trainer.state(step, metrics=metrics.to_csv(self.rows)),
                fingerprint=self._job.fingerprint,
                keep=self._job.train.checkpoints_total_limit,
            )

    def _publish(self, step: int) -> None:
        """Write the checkpoint of a step, if it is one to publish and not there yet."""
        if not self._accelerator.is_main_process or step not in self._published:
            return
        folder = self._job.checkpoints_dir
        if published.read_checkpoint(folder, step=step) is None:
            method = self._job.train.method
            published.write_checkpoint(
                folder, step=step, method=method, write_weights=self._write_weights
            )

    def _write_weights(self, folder: Path) -> None:
        unet = self._trainer.trainee.denoiser.unet
        write_adapter(unet, folder) if self._job.train.method == "lora" else write_unet(
            unet, folder
        )


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
