"""The job that a trainer process reads and the result that it writes. Torch-free."""

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
from dreambooth_core.records import BaseModelIdentity, InitialWeights, Record
from dreambooth_core.workspace import Workspace

_JOB = "job.json"
_ENDED = "ended.json"


class TrainJob(Record):
    """Everything that the launched processes need. Contains local paths, so it is not published.

    `prior_loss_weight` is None without class images. `state_dir` survives kills; `out_dir` appears
    complete at the end. `launch` is the content of `train.accelerate_config`. `tracking` configures
    the metric sink; `report_to` are further trackers. `entry` is the module that every process
    runs, followed by its arguments before the job's path. `copies_of_checkpoints` is the number of
    copies of each checkpoint on disk after the run. `ends_at` is the step of an early stop; the
    learning rate keeps to the schedule of `max_train_steps`. `dry_run` enables the dry run before a
    new training. `seconds_between_lines` is the interval of the progress lines. `init_from` are the
    weights to start from, in the folder `init_dir`; None starts from the base model.
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
    report_to: tuple[str, ...] = ()
    entry: tuple[str, ...] = ("dreambooth_core", "train-worker")
    copies_of_checkpoints: int = 1
    ends_at: int | None = None
    dry_run: bool = True
    seconds_between_lines: float = 0.5
    init_from: InitialWeights | None = None
    init_dir: Path | None = None

    @property
    def resume_dir(self) -> Path:
        """Folder of the resume states."""
        return self.state_dir / "resume"

    @property
    def checkpoints_dir(self) -> Path:
        """Folder of all checkpoints so far, published or not."""
        return self.state_dir / "checkpoints"

    @property
    def save_request(self) -> Path:
        """The file with which a user asks the training to save now."""
        return Workspace(self.workspace_root).save_request(self.subject)

    @property
    def trackers_dir(self) -> Path:
        """Folder of the files of the trackers in `report_to`."""
        return Workspace(self.workspace_root).places(self.subject).trackers_dir

    @property
    def last_step(self) -> int:
        """The step at which the training ends."""
        return self.ends_at or self.train.max_train_steps

    def published_steps(self) -> list[int]:
        """Return the published steps: all multiples of checkpointing_steps and the last step."""
        last, every = self.last_step, self.train.checkpointing_steps
        return sorted({*range(every, last + 1, every), last})

    @property
    def path(self) -> Path:
        """The file from which the processes read the job."""
        return self.state_dir / _JOB

    def save(self) -> Path:
        """Write the job for the processes and return its path."""
        self.write(self.state_dir, _JOB)
        return self.path

    @classmethod
    def load(cls, path: Path) -> TrainJob:
        """Read the job at `path`. Raises CorruptRecordError if it is damaged."""
        return cls.read(path.parent, path.name)


class TrainerExit(Record):
    """How a trainer ended, which the exit code of the launcher does not show."""

    how: Literal["done", "stopped", "failed"]
    step: int
    error: str | None = None
    exit_code: int = 0


def write_exit(state_dir: Path, ended: TrainerExit) -> None:
    """Write the result unless another process of the run has already written one.

    The first failure counts: when a rank fails, the others report only a lost peer.
    """
    aside = state_dir / f".aside-ended-{os.getpid()}.json"
    files.write_text(aside, ended.model_dump_json(indent=2))
    with contextlib.suppress(FileExistsError):
        os.link(aside, state_dir / _ENDED)
    aside.unlink()


def read_exit(state_dir: Path) -> TrainerExit | None:
    """Read the result of the last attempt; None if no process wrote one."""
    return TrainerExit.read_if_there(state_dir, _ENDED)


def clear_exit(state_dir: Path) -> None:
    """Remove the result of an earlier attempt."""
    (state_dir / _ENDED).unlink(missing_ok=True)
