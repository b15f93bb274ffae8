"""Resume states: all that the next update depends on, and the metrics, at a step.

What stands in a state is written and read by the `Strategy` of the run; here is how it gets whole,
who may read it, and which ones are kept.

Sample, crop, noise, timestep and learning rate are functions of the seed and the step, so no
generator, sampler or scheduler has a state to save.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from dreambooth_core import files
from dreambooth_core.errors import StageError
from dreambooth_core.records import Record
from dreambooth_core.training import progress
from dreambooth_core.training.checkpoints.published import METRICS, first_missing
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.progress import MetricsRow


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
        return progress.from_csv(read_metrics(job.resume_dir, self.record), last_step=self.step)


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
            rows = progress.from_csv(read_metrics(job.resume_dir, beyond), last_step=last)
            return Start(record=None, finished_table=progress.to_csv(rows))
    at_most = last if missing is None else missing
    return Start(newest_state(job.resume_dir, fingerprint=job.fingerprint, at_most=at_most))


class StateRecord(Record):
    """A resume state's record, written last: whose it is, and the sha256 of its files."""

    step: int
    fingerprint: str
    files: dict[str, str]


def save_state(
    folder: Path,
    *,
    step: int,
    fingerprint: str,
    metrics: str,
    keep: int,
    write: Callable[[Path], None],
) -> None:
    """Write a state aside, rename it, verify it, and only then prune older ones.

    Called by all processes: each may `write` its part into the one folder, which they share. The
    newest `keep` states up to this step stay; those of later steps (an earlier run went further)
    are not in the way. Raises StageError when the disk gives back other bytes.
    """
    processes = PartialState()
    path = folder / _name(step)
    with shared_aside(path) as aside:
        write(aside)
        processes.wait_for_everyone()
        if processes.is_main_process:
            files.write_text(aside / METRICS, metrics)
            hashes = files.tree_hashes(aside)
            StateRecord(step=step, fingerprint=fingerprint, files=hashes).write(aside)
    if processes.is_main_process:
        if _verified(path, fingerprint=fingerprint) is None:
            raise StageError(
                f"the state of step {step} was written but cannot be read back",
                got=str(path),
                hint="check the disk; the older states are untouched",
            )
        for old in [s for s in _steps(folder) if s <= step][keep:]:
            shutil.rmtree(folder / _name(old), ignore_errors=True)
    processes.wait_for_everyone()


@contextlib.contextmanager
def shared_aside(path: Path) -> Iterator[Path]:
    """The folder that becomes `path`, for all processes; the main one makes and renames it.

    All have written when the main process leaves it.
    """
    if not PartialState().is_main_process:
        shared = [""]
        broadcast_object_list(shared)
        yield Path(shared[0])
        return
    with files.atomic_dir(path) as aside:
        broadcast_object_list([str(aside)])
        yield aside


def newest_state(
    folder: Path, *, fingerprint: str, at_least: int = 0, at_most: int | None = None
) -> StateRecord | None:
    """The newest whole state of this fingerprint within the limits; damaged ones are passed by."""
    for step in _steps(folder):
        if step < at_least or (at_most is not None and step > at_most):
            continue
        if record := _verified(folder / _name(step), fingerprint=fingerprint):
            return record
    return None


def state_dir(folder: Path, record: StateRecord) -> Path:
    """The folder of a state that `newest_state` has verified."""
    return folder / _name(record.step)


def read_metrics(folder: Path, record: StateRecord) -> str:
    """Only the metrics table of a state."""
    return (state_dir(folder, record) / METRICS).read_text()


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _steps(folder: Path) -> list[int]:
    """Steps of all states that are there, whole or not, newest first."""
    return sorted(_listed(folder), reverse=True)


def _listed(folder: Path) -> Iterator[int]:
    for path in folder.glob("step-*"):
        if found := re.fullmatch(r"step-(\d{8})", path.name):
            yield int(found[1])


def _verified(path: Path, *, fingerprint: str) -> StateRecord | None:
    record = StateRecord.read_if_there(path)
    if record is None or record.fingerprint != fingerprint or _name(record.step) != path.name:
        return None
    if METRICS not in record.files:
        return None
    return None if files.mismatches(path, record.files) else record
