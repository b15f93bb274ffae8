"""Resume states: everything that the next update depends on, and the metrics, at a step.

The `Strategy` of the run writes and reads the content of a state. This module makes states atomic,
verifies them, and prunes old ones.

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
    """`record` is the state to resume from; None starts from the base model.

    `finished_table` is the metrics table if nothing is left to train.
    """

    record: StateRecord | None
    finished_table: str | None = None

    @property
    def step(self) -> int:
        """The completed steps."""
        return self.record.step if self.record else 0

    def state(self, job: TrainJob) -> Path | None:
        """The folder of the state, if there is one."""
        return state_dir(job.resume_dir, self.record) if self.record else None

    def rows(self, job: TrainJob) -> list[MetricsRow]:
        """The metrics of the completed steps."""
        if self.record is None:
            return []
        return progress.from_csv(read_metrics(job.resume_dir, self.record), last_step=self.step)


def find_start(job: TrainJob) -> Start:
    """Find the newest valid state from which the run writes every missing checkpoint.

    An earlier run of the same fingerprint may have stopped between checkpoints, gone further, or
    published other steps. So this is the newest state at or before the first missing checkpoint.
    If none is missing, a state at or after the last step still has the metrics.
    """
    for folder in (job.resume_dir, job.checkpoints_dir, job.out_dir.parent):
        files.remove_asides(folder)
    last = job.last_step
    missing = first_missing(job)
    if missing is None:
        beyond = newest_state(job.resume_dir, fingerprint=job.fingerprint, at_least=last)
        if beyond is not None:
            rows = progress.from_csv(read_metrics(job.resume_dir, beyond), last_step=last)
            return Start(record=None, finished_table=progress.to_csv(rows))
    at_most = last if missing is None else missing
    return Start(newest_state(job.resume_dir, fingerprint=job.fingerprint, at_most=at_most))


class StateRecord(Record):
    """The record of a resume state, written last: its run and the sha256 of its files."""

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
    """Write a state to a temporary folder, rename it, verify it, and only then prune older ones.

    Call it in all processes: each may `write` its part to the folder, which they share. The newest
    `keep` states up to this step stay, and so do later steps of an earlier run. Raises StageError
    if the written files do not verify.
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
    """Yield a temporary folder to all processes; the main process renames it to `path`.

    The main process must leave the block last.
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
    """The newest valid state of this fingerprint within the limits; skips damaged ones."""
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
    """Read the metrics table of a state."""
    return (state_dir(folder, record) / METRICS).read_text()


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _steps(folder: Path) -> list[int]:
    """The steps of all states, valid or not, newest first."""
    names = (re.fullmatch(r"step-(\d{8})", path.name) for path in folder.glob("step-*"))
    return sorted((int(found[1]) for found in names if found), reverse=True)


def _verified(path: Path, *, fingerprint: str) -> StateRecord | None:
    record = StateRecord.read_if_there(path)
    if record is None or record.fingerprint != fingerprint or _name(record.step) != path.name:
        return None
    if METRICS not in record.files:
        return None
    return None if files.mismatches(path, record.files) else record
