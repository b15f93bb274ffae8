"""Saving during training: the loop decides when, a layout decides what and where, a thread writes.

`PipelineLayout` is the pipeline's. The guide's scripts have another one in
`scripts/checkpoints.py`, which writes everything of a step to one `checkpoint-N` folder.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

from dreambooth_core.training.checkpoints import published, resume_state
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.protocols import CheckpointSource, TrainingState
from dreambooth_core.training.trainable import TrainableModel


class Saver:
    """Saves with a layout: between two updates, or with `is_async` from a snapshot in a thread.

    Saves never overlap. A failed save ends the run with its own error, before the next update or
    at the end.
    """

    def __init__(self, layout: CheckpointLayout, state: TrainingState, *, is_async: bool) -> None:
        self._layout, self._state, self._is_async = layout, state, is_async
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._writing: Future[None] | None = None

    def save(self, *, step: int, metrics: str, waits: bool) -> None:
        """Save `step`; wait for the write if it `waits` or there is no snapshot."""
        self.wait()  # the new snapshot reuses the memory of the last one
        save = self._layout.save
        snapshot = self._state.snapshot() if self._is_async and not waits else None
        if snapshot is None:
            save(self._state, step=step, metrics=metrics)
        else:
            self._writing = self._writer.submit(save, snapshot, step=step, metrics=metrics)

    def check(self) -> None:
        """Raise the error of a failed save, without waiting for one in progress."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is on disk. Raises its error."""
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
        """Wait for the last write; an error of the run has priority over one of the save."""
        self._writer.shutdown()
        if error is None:
            self.wait()
        elif self._writing is not None and (failed := self._writing.exception()):
            log_line(f"error: the last save failed, too: {failed}")


class CheckpointLayout(Protocol):
    """Writes what a run saves. Every process of the run calls its methods.

    In a run of one process another thread may call `save`, but calls never overlap.
    """

    def begin(self, source: CheckpointSource, *, step: int) -> None:
        """Prepare for a run that starts after `step` completed updates."""
        ...

    def is_due(self, step: int) -> bool:
        """Return whether to save `step`."""
        ...

    def save(self, source: CheckpointSource, *, step: int, metrics: str) -> None:
        """Save `step`, because it is due or because a user asked for it or for a stop."""
        ...


class PipelineLayout:
    """Writes checkpoints to publish and separate resume states to the job's folder in the store.

    A save that a user asked for writes only a resume state, unless the step is published.
    """

    def __init__(self, job: TrainJob, *, is_main: bool) -> None:
        self._job, self._is_main = job, is_main
        self._published = set(job.published_steps())

    def begin(self, source: CheckpointSource, *, step: int) -> None:
        """Write the checkpoint of `step` if it is missing."""
        self._publish(source, step)

    def is_due(self, step: int) -> bool:
        """Whether `step` is a multiple of checkpointing_steps or the last step."""
        return step % self._job.train.checkpointing_steps == 0 or step == self._job.last_step

    def save(self, source: CheckpointSource, *, step: int, metrics: str) -> None:
        """Write the checkpoint if `step` is published, then the resume state."""
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
        """Write the checkpoint of a published step unless it exists."""
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
