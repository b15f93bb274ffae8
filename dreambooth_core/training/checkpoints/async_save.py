"""When a run's outcome is written: while the updates go on where it can be, else between them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from dreambooth_core.training.checkpoints.layout import CheckpointLayout
from dreambooth_core.training.progress import log_line
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
