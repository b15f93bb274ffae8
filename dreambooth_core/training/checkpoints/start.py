"""Where a run begins: from which resume state, so that every checkpoint gets made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.training import metrics
from dreambooth_core.training.checkpoints.published import first_missing
from dreambooth_core.training.checkpoints.resume_state import (
    StateRecord,
    newest_state,
    read_metrics,
    state_dir,
)
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.metrics import MetricsRow


@dataclass(frozen=True)
class Start:
    """`record` is the state to continue from (None: from the base model).

    `finished_table` is the metrics table when nothing is left to train.
    """

    record: StateRecord | None
    finished_table: str | None = None

    @property
    def step(self) -> int:
        """The completed steps."""
        return self.record.step if self.record else 0

    def state(self, job: TrainJob) -> Path | None:
        """The folder of the state."""
        return state_dir(job.resume_dir, self.record) if self.record else None

    def rows(self, job: TrainJob) -> list[MetricsRow]:
        """The metrics of the completed steps."""
        if self.record is None:
            return []
        return metrics.from_csv(read_metrics(job.resume_dir, self.record), last_step=self.step)


def find_start(job: TrainJob) -> Start:
    """The newest whole state from which no checkpoint is left out.

    An earlier run of the same fingerprint may have stopped between checkpoints, gone further, or
    published other steps. So it is the newest state at or before the first checkpoint that is
    missing; where all are there, a state at or beyond the last step still has the metrics.
    """
    for folder in (job.resume_dir, job.checkpoints_dir, job.out_dir.parent):
        files.remove_asides(folder)
    last = job.train.max_train_steps
    missing = first_missing(job)
    if missing is None:
        beyond = newest_state(job.resume_dir, fingerprint=job.fingerprint, at_least=last)
        if beyond is not None:
            rows = metrics.from_csv(read_metrics(job.resume_dir, beyond), last_step=last)
            return Start(record=None, finished_table=metrics.to_csv(rows))
    at_most = last if missing is None else missing
    return Start(newest_state(job.resume_dir, fingerprint=job.fingerprint, at_most=at_most))
