"""Before the first step: what must work and fit at the end is tried while nothing is lost yet."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from dreambooth_core.errors import DreamBoothError, StageError
from dreambooth_core.models.footprint import state_bytes
from dreambooth_core.models.load import load_pipeline
from dreambooth_core.models.sampling import sample
from dreambooth_core.models.weights import applied, export_pipeline
from dreambooth_core.records import Checkpoint
from dreambooth_core.training.checkpoints import published
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.protocols import TrainingState
from dreambooth_core.training.trainable import TrainableModel

_T = TypeVar("_T")

_SIDE_PX = 64
"""The smallest picture that every family's U-Net can draw; what it shows does not matter."""
_MIB = 2**20


@dataclass(frozen=True)
class Kept:
    """How many inference parts and how many resume states a run will have on the disk."""

    checkpoints: int
    states: int


def kept_in_store(job: TrainJob) -> Kept:
    """What the pipeline keeps: every checkpoint in all its copies, and the newest states.

    One state more than the limit is there while a new one is written.
    """
    missing = len(job.published_steps()) - len(list(job.checkpoints_dir.glob("checkpoint-*")))
    return Kept(
        checkpoints=max(missing, 0) * job.copies_of_checkpoints,
        states=job.train.checkpoints_total_limit + 1,
    )


def dry_run(job: TrainJob, state: TrainingState, kept: Kept, *, is_main: bool) -> None:
    """Try step 0 in the main process; called by all, as they put the weights together.

    Raises StageError.
    """
    with state.gathered_weights():
        if is_main:
            _dry_run(job, state.model, kept)


def _dry_run(job: TrainJob, model: TrainableModel, kept: Kept) -> None:
    """Save, export, load and sample the networks of step 0, then check the free disk.

    All of it on the CPU (beside the training, a card may have no room for a pipeline) and in a
    folder that is removed.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=job.state_dir, prefix=".aside-dry-run-") as name:
        folder = Path(name)
        checkpoint = _tried("save a checkpoint", lambda: _save(job, model, folder))
        checkpoint_bytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        _tried("export it", lambda: _export(job, folder, checkpoint))
        _tried("load it again and sample from it", lambda: _sample(job, folder, checkpoint))
    shapes = [tuple(parameter.shape) for parameter in model.trainable.values()]
    check_disk(
        job.state_dir,
        kept,
        checkpoint_bytes=checkpoint_bytes,
        state_bytes=state_bytes(shapes, job.train),
    )
    log_line(f"saved, exported, loaded and sampled step 0 in {time.monotonic() - began:.1f} s")


def _tried(what: str, act: Callable[[], _T]) -> _T:
    try:
        return act()
    except DreamBoothError:
        raise
    except Exception as error:  # whatever it is, it would have ended the run hours later
        raise StageError(
            f"the dry run before the first step could not {what}",
            got=f"{type(error).__name__}: {error}",
            hint="nothing was trained; mend this first",
        ) from error


def _save(job: TrainJob, model: TrainableModel, folder: Path) -> Checkpoint:
    return published.write_checkpoint(
        folder, step=0, method=job.train.method, write_weights=model.write
    )


def _export(job: TrainJob, folder: Path, checkpoint: Checkpoint) -> None:
    export_pipeline(
        job.base_model,
        job.workspace_root,
        identity=job.base_identity,
        checkpoint_dir=folder / checkpoint.name,
        checkpoint=checkpoint,
        out=folder / "exported",
    )


def _sample(job: TrainJob, folder: Path, checkpoint: Checkpoint) -> None:
    pipe = load_pipeline(job.base_model, job.workspace_root, device=torch.device("cpu"))
    with applied(pipe, folder / checkpoint.name, checkpoint):
        sample(
            pipe,
            prompts=["a photo"],
            seeds=[0],
            steps=1,
            guidance=1.0,
            resolution=_SIDE_PX,
            batch_size=1,
        )


def check_room_to_go_on(job: TrainJob, model: TrainableModel) -> None:
    """Raise StageError unless there is room for the rest of a resumed run, which may be longer.

    Sizes are those of the newest checkpoint; before the first one the dry run has checked it.
    """
    made = sorted(job.checkpoints_dir.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    if not made:
        return
    kept = kept_in_store(job)
    states = max(1, kept.states - len(list(job.resume_dir.glob("step-*"))))
    shapes = [tuple(parameter.shape) for parameter in model.trainable.values()]
    check_disk(
        job.state_dir,
        Kept(checkpoints=kept.checkpoints, states=states),
        checkpoint_bytes=sum(p.stat().st_size for p in made[-1].rglob("*") if p.is_file()),
        state_bytes=state_bytes(shapes, job.train),
    )


def check_disk(folder: Path, kept: Kept, *, checkpoint_bytes: int, state_bytes: int) -> None:
    """Raise StageError unless the disk of `folder` has room for all that the run will keep."""
    needed = kept.checkpoints * checkpoint_bytes + kept.states * state_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StageError(
            f"the disk has no room for this run: {needed / _MIB:,.0f} MiB are needed",
            got=f"{free / _MIB:,.0f} MiB free at {folder}",
            allowed=f"{kept.checkpoints} checkpoints (with their copies) of "
            f"{checkpoint_bytes / _MIB:,.1f} MiB and {kept.states} resume states of "
            f"{state_bytes / _MIB:,.1f} MiB",
            hint="make room (`dreambooth clean` does in a workspace), raise checkpointing_steps, "
            "or lower checkpoints_total_limit",
        )
