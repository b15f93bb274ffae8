"""What a trainer process is told, and what it says at its end. Torch-free."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from dreambooth_core import files
from dreambooth_core.config import (
    BaseModelSettings,
    ComputeSettings,
    LaunchConfig,
    TrainSettings,
)
from dreambooth_core.records import BaseModelIdentity, Record

_JOB = "job.json"
_ENDED = "ended.json"


class TrainJob(Record):
    """Everything that the launched processes need. Holds paths of this machine: never published.

    `prior_loss_weight` is None where there are no class images. `state_dir` survives kills;
    `out_dir` is made whole at the end. `launch` is what `train.accelerate_config` names.
    `tracking` is for the metric sink. `entry` is the module that every process runs, with its
    arguments before the job's path. `copies_of_checkpoints` is how often each lies on the disk in
    the end; `dry_run`: whether a fresh run begins with a dry run.
    """

    subject: str
    fingerprint: str
    base_model: BaseModelSettings
    base_identity: BaseModelIdentity
    compute: ComputeSettings
    train: TrainSettings
    prior_loss_weight: float | None
    log_every_steps: int
    async_checkpointing: bool = False
    workspace_root: Path
    cache_dir: Path
    state_dir: Path
    out_dir: Path
    log_file: Path
    launch: LaunchConfig | None = None
    tracking: dict[str, str] = Field(default_factory=dict)
    entry: tuple[str, ...] = ("dreambooth_core", "train-worker")
    copies_of_checkpoints: int = 1
    dry_run: bool = True

    @property
    def resume_dir(self) -> Path:
        """Where the resume states are."""
        return self.state_dir / "resume"

    @property
    def checkpoints_dir(self) -> Path:
        """Every checkpoint made so far, published or not."""
        return self.state_dir / "checkpoints"

    def published_steps(self) -> list[int]:
        """The steps whose checkpoints are published: multiples of checkpointing_steps, and last."""
        last, every = self.train.max_train_steps, self.train.checkpointing_steps
        return sorted({*range(every, last + 1, every), last})

    @property
    def path(self) -> Path:
        """Where the processes read the job."""
        return self.state_dir / _JOB

    def save(self) -> Path:
        """Write the job for the processes to read; returns its path."""
        self.write(self.state_dir, _JOB)
        return self.path

    @classmethod
    def load(cls, path: Path) -> TrainJob:
        """The job written at `path`. Raises CorruptRecordError."""
        return cls.read(path.parent, path.name)


class Ended(Record):
    """How a trainer ended: its own word, as the launcher's exit code does not say."""

    how: Literal["done", "stopped", "failed"]
    step: int
    error: str | None = None
    exit_code: int = 0


def write_ended(state_dir: Path, ended: Ended) -> None:
    """Leave the marker, unless another process of the run has done so: the first word counts.

    A rank that dies takes the others with it, and theirs would be a message about a lost peer.
    """
    aside = state_dir / f".aside-ended-{os.getpid()}.json"
    files.write_text(aside, ended.model_dump_json(indent=2))
    with contextlib.suppress(FileExistsError):
        os.link(aside, state_dir / _ENDED)
    aside.unlink()


def read_ended(state_dir: Path) -> Ended | None:
    """The marker of the last attempt, or None where no process left one."""
    return Ended.read_if_there(state_dir, _ENDED)


def clear_ended(state_dir: Path) -> None:
    """Remove the marker of an earlier attempt."""
    (state_dir / _ENDED).unlink(missing_ok=True)
