"""The folders of the flags: created, writable, and with room for the run."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from dreambooth_core.errors import DreamBoothError, SettingsError
from dreambooth_core.models.footprint import state_bytes
from dreambooth_core.scripts import checkpoints, resume
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.training.distributed import broadcast_from_main
from dreambooth_core.training.dry_run import DiskPlan, check_disk, dry_run
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.trainable import TrainableModel
from dreambooth_core.training.trainer import StepTrainer


def make_folder(folder: Path, *, flag: str) -> None:
    """Create a folder and its parents. Raises SettingsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--{flag}: {folder} cannot be made", got=str(error)) from None


def require_writable(folder: Path, *, flag: str) -> None:
    """Raise SettingsError unless a file can be created in the folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingsError(
            f"--{flag}: {folder} is not writable",
            got=str(error.strerror),
            hint="see to its permissions, or give another folder",
        ) from None


@contextlib.contextmanager
def removed_on_wrong_input(folder: Path, *, scratch: Path) -> Iterator[None]:
    """Remove `scratch` and empty folders again if the input turns out to be wrong."""
    had_scratch = scratch.exists()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except DreamBoothError as error:
        if error.exit_code == SettingsError.exit_code:
            if not had_scratch:
                shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty
                for path in missing:
                    path.rmdir()
        raise


def require_room(
    settings: ScriptSettings,
    job: TrainJob,
    trainer: StepTrainer,
    found: resume.Found | None,
    *,
    accelerator: Accelerator,
) -> None:
    """Raise StageError unless the disk has room; a new run measures step 0 in a dry run."""
    if found is None:
        new = kept(settings, last=job.train.max_train_steps)
        dry_run(job, trainer.state, new, is_main=accelerator.is_main_process)
        return
    broadcast_from_main(
        accelerator, lambda: _check_room_to_resume(settings, job, trainer.model, found)
    )


def kept(settings: ScriptSettings, *, last: int, first: int = 0, there: int = 0) -> DiskPlan:
    """The most that a run from `first` to `last` adds to `there` checkpoints.

    During a save there is one checkpoint more than the limit. The result counts as another.
    """
    every, limit = settings.flags.checkpointing_steps, settings.flags.checkpoints_total_limit
    num = last // every - first // every
    new = num if limit is None else min(num, max(1, limit + 1 - there))
    return DiskPlan(checkpoints=new + 1, states=new)


def _check_room_to_resume(
    settings: ScriptSettings, job: TrainJob, model: TrainableModel, found: resume.Found
) -> None:
    """Raise StageError unless there is room for the rest of a run that resumes from `found`.

    A new run learns the sizes from its dry run, a resumed one from its checkpoint.
    """
    path, record = found
    there = len(checkpoints.records(settings.output_dir, run=record.run))
    check_disk(
        settings.output_dir,
        kept(settings, last=job.train.max_train_steps, first=record.step, there=there),
        checkpoint_bytes=_published_bytes(path),
        state_bytes=state_bytes([tuple(p.shape) for p in model.trainable.values()], job.train),
    )


def _published_bytes(path: Path) -> int:
    """The size of a checkpoint without its training state."""
    parts = [entry for entry in path.iterdir() if entry.name != checkpoints.STATE]
    found = [file for part in parts for file in (part.rglob("*") if part.is_dir() else (part,))]
    return sum(file.stat().st_size for file in found if file.is_file())
