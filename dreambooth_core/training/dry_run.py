"""The dry run: saves, exports, loads and samples step 0, so that these fail before training."""

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
"""The smallest image side in pixels that the U-Net of every family can generate."""
_MIB = 2**20


@dataclass(frozen=True)
class DiskPlan:
    """The number of checkpoints and of resume states that a run will add to the disk."""

    checkpoints: int
    states: int


def disk_plan(job: TrainJob) -> DiskPlan:
    """Count the checkpoints still to be written, with their copies, and the newest states.

    While a new state is being written, one state more than the limit exists.
    """
    missing = len(job.published_steps()) - len(list(job.checkpoints_dir.glob("checkpoint-*")))
    return DiskPlan(
        checkpoints=max(missing, 0) * job.copies_of_checkpoints,
        states=job.train.checkpoints_total_limit + 1,
    )


def dry_run(job: TrainJob, state: TrainingState, plan: DiskPlan, *, is_main: bool) -> None:
    """Save, export, load and sample step 0 in the main process, then check the free disk space.

    Call it in all processes, because they gather the weights together. Raises StageError if a part
    fails or the disk is too small.
    """
    with state.gathered_weights():
        if is_main:
            _dry_run(job, state.model, plan)


def _dry_run(job: TrainJob, model: TrainableModel, plan: DiskPlan) -> None:
    """Run the dry run on the CPU, in a temporary folder.

    The GPU may not have memory for a pipeline in addition to the training.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=job.state_dir, prefix=".aside-dry-run-") as name:
        folder = Path(name)
        checkpoint = _attempt("save a checkpoint", lambda: _save(job, model, folder))
        checkpoint_bytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        _attempt("export the checkpoint", lambda: _export(job, folder, checkpoint))
        _attempt("load the checkpoint and sample from it", lambda: _sample(job, folder, checkpoint))
    shapes = [tuple(parameter.shape) for parameter in model.trainable.values()]
    check_disk(
        job.state_dir,
        plan,
        checkpoint_bytes=checkpoint_bytes,
        state_bytes=state_bytes(shapes, job.train),
    )
    log_line(f"saved, exported, loaded and sampled step 0 in {time.monotonic() - began:.1f} s")


def _attempt(what: str, act: Callable[[], _T]) -> _T:
    try:
        return act()
    except DreamBoothError:
        raise
    except Exception as error:  # any error here would have ended the run hours later
        raise StageError(
            f"the dry run could not {what}",
            got=f"{type(error).__name__}: {error}",
            hint="fix this error and run again; nothing was trained",
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


def check_disk_for_resume(job: TrainJob, model: TrainableModel) -> None:
    """Raise StageError if the disk is too small for the rest of a resumed run.

    The resumed run may have more steps than before. The newest checkpoint gives the size; if there
    is none, the dry run has checked the disk.
    """
    checkpoints = sorted(
        job.checkpoints_dir.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime
    )
    if not checkpoints:
        return
    plan = disk_plan(job)
    states = max(1, plan.states - len(list(job.resume_dir.glob("step-*"))))
    shapes = [tuple(parameter.shape) for parameter in model.trainable.values()]
    check_disk(
        job.state_dir,
        DiskPlan(checkpoints=plan.checkpoints, states=states),
        checkpoint_bytes=sum(p.stat().st_size for p in checkpoints[-1].rglob("*") if p.is_file()),
        state_bytes=state_bytes(shapes, job.train),
    )


def check_disk(folder: Path, plan: DiskPlan, *, checkpoint_bytes: int, state_bytes: int) -> None:
    """Raise StageError if the disk of `folder` is too small for the plan; sizes in bytes."""
    needed = plan.checkpoints * checkpoint_bytes + plan.states * state_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StageError(
            f"the disk is too small for this run, which needs {needed / _MIB:,.0f} MiB",
            got=f"{free / _MIB:,.0f} MiB free at {folder}",
            allowed=f"{plan.checkpoints} checkpoints (with their copies) of "
            f"{checkpoint_bytes / _MIB:,.1f} MiB and {plan.states} resume states of "
            f"{state_bytes / _MIB:,.1f} MiB",
            hint="free disk space (`dreambooth clean` in a workspace), raise checkpointing_steps, "
            "or lower checkpoints_total_limit",
        )
