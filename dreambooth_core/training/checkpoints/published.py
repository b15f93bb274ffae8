"""Checkpoints for inference on disk, and a run's output folder of them. Torch-free."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.records import RECORD_NAME, Checkpoint, Method, TrainingRun
from dreambooth_core.training.job import TrainJob

METRICS = "metrics.csv"
"""One row per update, in the published folder and in every resume state."""


def checkpoint_name(step: int) -> str:
    """The folder's name: `checkpoint-<step>`, as in the DreamBooth guide."""
    return f"checkpoint-{step}"


def write_checkpoint(
    folder: Path, *, step: int, method: Method, write_weights: Callable[[Path], None]
) -> Checkpoint:
    """Write `checkpoint-<step>` below `folder` atomically, with the record last."""
    name = checkpoint_name(step)
    with files.atomic_dir(folder / name) as aside:
        write_weights(aside)
        hashes = files.tree_hashes(aside)
        checkpoint = Checkpoint(
            name=name, step=step, method=method, sha256=files.digest_of(hashes), files=hashes
        )
        checkpoint.write(aside)
    return checkpoint


def read_checkpoint(folder: Path, *, step: int) -> Checkpoint | None:
    """Read the checkpoint of a step; None if it is missing or damaged."""
    path = folder / checkpoint_name(step)
    checkpoint = Checkpoint.read_if_there(path)
    if checkpoint is None or checkpoint.step != step or files.mismatches(path, checkpoint.files):
        return None
    return checkpoint


def first_missing(job: TrainJob) -> int | None:
    """The first published step whose checkpoint is missing or damaged."""
    for step in job.published_steps():
        if read_checkpoint(job.checkpoints_dir, step=step) is None:
            return step
    return None


def assemble(job: TrainJob, *, metrics: str) -> TrainingRun:
    """Write `out_dir`: exactly the published checkpoints, the metrics, and the record last.

    Raises CorruptRecordError if a checkpoint is missing, which is a bug in the caller.
    """
    with files.atomic_dir(job.out_dir) as aside:
        checkpoints = []
        for step in job.published_steps():
            name = checkpoint_name(step)
            checkpoints.append(Checkpoint.read(job.checkpoints_dir / name))
            shutil.copytree(job.checkpoints_dir / name, aside / name, copy_function=_link_or_copy)
        files.write_text(aside / METRICS, metrics)
        run = TrainingRun(
            fingerprint=job.fingerprint,
            base_model=job.base_identity,
            method=job.train.method,
            max_train_steps=job.last_step,
            checkpoints=tuple(checkpoints),
            init_from=job.init_from,
        )
        run.write(aside)
    return run


def _link_or_copy(source: str, target: str) -> None:
    """Hard-link a file, which is safe because files in the store never change in place."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def finished_run(job: TrainJob) -> TrainingRun | None:
    """The run in `out_dir` if it is this job's, complete and undamaged; else None."""
    run = TrainingRun.read_if_there(job.out_dir)
    if run is None or run.fingerprint != job.fingerprint:
        return None
    if [checkpoint.step for checkpoint in run.checkpoints] != job.published_steps():
        return None
    whole = all(_is_whole(job.out_dir / c.name, c) for c in run.checkpoints)
    rows = _num_rows(job.out_dir / METRICS)
    return run if whole and rows == job.last_step else None


def _is_whole(folder: Path, checkpoint: Checkpoint) -> bool:
    same = Checkpoint.read_if_there(folder, RECORD_NAME) == checkpoint
    return same and not files.mismatches(folder, checkpoint.files)


def _num_rows(path: Path) -> int | None:
    return len(path.read_text().splitlines()) - 1 if path.is_file() else None
