"""Saving during a training: the loop decides when, a layout what and where, a thread writes.

This is the pipeline's layout. The guide's scripts have another (`scripts/checkpoints.py`), with
everything of a step in one `checkpoint-N` folder.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

from dreambooth_core.training.checkpoints import published, resume_state
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.protocols import CheckpointSource
from dreambooth_core.training.trainable import TrainableModel
from dreambooth_core.training.trainer import StepTrainer


class Saver:
    """Has a layout save: between two updates, or `beside` them, from a snapshot in a thread.

    One save at a time. A save that fails ends the run: with its own error, before the next update
    or at the end.
    """

    def __init__(self, layout: CheckpointLayout, trainer: StepTrainer, *, beside: bool) -> None:
        self._layout, self._trainer, self._beside = layout, trainer, beside
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._writing: Future[None] | None = None

    def save(self, *, step: int, metrics: str, goes_on: bool) -> None:
        """Save the outcome of `step`; at once where no update follows or nothing can be copied."""
        self.wait()  # the last snapshot's memory is used again
        state = self._trainer.state
        snapshot = state.snapshot() if self._beside and goes_on else None
        if snapshot is None:
            self._layout.save(state, step=step, metrics=metrics)
        else:
            save = self._layout.save
            self._writing = self._writer.submit(save, snapshot, step=step, metrics=metrics)

    def check(self) -> None:
        """Raise the error of a save that has failed; waits for nothing."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until the outcome that was saved last is on the disk. Raises the error of its save."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let no write outlive the run; where this has failed already, its error stays the one."""
        self._writer.shutdown()
        if error is None:
            self.wait()
        elif self._writing is not None and (failed := self._writing.exception()):
            log_line(f"error: the last save has failed, too: {failed}")


class CheckpointLayout(Protocol):
    """Keeps what a run has made. Its methods are called on every process of the run.

    In a run of one process another thread may call `save`: never two at a time.
    """

    def begin(self, source: CheckpointSource, *, step: int) -> None:
        """The run stands at `step` completed updates and goes on from there."""
        ...

    def is_due(self, step: int) -> bool:
        """Whether the outcome of `step` must be saved."""
        ...

    def save(self, source: CheckpointSource, *, step: int, metrics: str) -> None:
        """Save the outcome of `step`: because it is due, or because the run is asked to stop."""
        ...


class PipelineLayout:
    """Checkpoints to publish, and resume states apart from them, in the job's folder of the store.

    A save on a stop is a resume state only.
    """

    def __init__(self, job: TrainJob, *, is_main: bool) -> None:
        self._job, self._is_main = job, is_main
        self._published = set(job.published_steps())

    def begin(self, source: CheckpointSource, *, step: int) -> None:
        """Make the checkpoint of the state's own step where it is missing."""
        self._publish(source, step)

    def is_due(self, step: int) -> bool:
        """At every multiple of checkpointing_steps, and at the last step."""
        train = self._job.train
        return step % train.checkpointing_steps == 0 or step == train.max_train_steps

    def save(self, source: CheckpointSource, *, step: int, metrics: str) -> None:
        """Publish the checkpoint if its step is one to publish, then save the resume state."""
        self._publish(source, step)
        resume_state.save_state(
            self._job.resume_dir,
            step=step,
            fingerprint=self._job.fingerprint,
            metrics=metrics,
            keep=self._job.train.checkpoints_total_limit,
            write=source.save,
        )

    def _publish(self, source: CheckpointSource, step: int) -> None:
        """Write the checkpoint of a step, if it is one to publish and not there yet."""
        if step not in self._published:
            return
        with source.gathered_weights():
            if self._is_main:
                self._write(source.model, step)

    def _write(self, model: TrainableModel, step: int) -> None:
        folder = self._job.checkpoints_dir
        if published.read_checkpoint(folder, step=step) is None:
            published.write_checkpoint(
                folder,
                step=step,
                method=self._job.train.method,
                write_weights=model.write,
            )
