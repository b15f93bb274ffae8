"""Whether the disk has room for what a script's run will keep."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.models.footprint import state_bytes
from dreambooth_core.scripts import resume
from dreambooth_core.scripts.checkpoints import STATE
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.training.dry_run import Kept, check_disk
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.trainable import TrainableModel


def kept(plan: ScriptSettings, *, last: int, first: int = 0, there: int = 0) -> Kept:
    """What a run from `first` to `last` adds to `there` checkpoints, at the most at one time.

    Whole folders, one more than the limit while a new one is written, and the result itself.
    """
    every, limit = plan.flags.checkpointing_steps, plan.flags.checkpoints_total_limit
    num = last // every - first // every
    new = num if limit is None else min(num, max(1, limit + 1 - there))
    return Kept(checkpoints=new + 1, states=new)


def check_resume(
    plan: ScriptSettings, job: TrainJob, model: TrainableModel, found: resume.Found
) -> None:
    """Raise StageError unless there is room for the rest of a run that goes on from `found`.

    A new run learns the sizes from its dry run, a resumed one from its checkpoint.
    """
    path, record = found
    there = len(resume.records(plan.output_dir, run=record.run))
    check_disk(
        plan.output_dir,
        kept(plan, last=job.train.max_train_steps, first=record.step, there=there),
        checkpoint_bytes=_published_bytes(path),
        state_bytes=state_bytes([tuple(p.shape) for p in model.trainable.values()], job.train),
    )


def _published_bytes(path: Path) -> int:
    """The size of a checkpoint without its training state."""
    parts = [entry for entry in path.iterdir() if entry.name != STATE]
    found = [file for part in parts for file in (part.rglob("*") if part.is_dir() else (part,))]
    return sum(file.stat().st_size for file in found if file.is_file())
