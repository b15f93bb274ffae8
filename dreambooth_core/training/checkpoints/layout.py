"""How a run's outcome is kept on disk while it goes: the loop knows when, a layout what and where.

The pipeline's layout is in here. The scripts of the seed document have another one
(`dreambooth_core/scripts/checkpoints.py`), with everything of a step in one `checkpoint-N` folder.
"""

from __future__ import annotations

from typing import Protocol

from dreambooth_core.training.checkpoints import published, resume_state
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.protocols import CheckpointSource
from dreambooth_core.training.trainable import TrainableModel


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
