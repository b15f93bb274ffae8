"""What all stages share: their context, their fingerprint, and how they publish."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreambooth_core import config, files, locks
from dreambooth_core.config import (
    BaseModelSettings,
    ComputeSettings,
    DataSettings,
    SubjectView,
)
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import (
    BaseModelIdentity,
    CheckpointScore,
    Evaluation,
    ScoreRow,
    Scores,
)
from dreambooth_core.workspace import Places

if TYPE_CHECKING:
    from dreambooth_core.evaluation.selection import Limits

FLOW_RUN = "DREAMBOOTH_FLOW_RUN"
"""Environment variable: the address of the present Prefect run."""

PUBLISH_TIMEOUT_S = 120.0

_MAX_LANES = 4
"""Each lane needs the memory of a block."""

OnScore = Callable[[CheckpointScore, "Limits"], None]
"""Receives every checkpoint that is scored during the training; what it raises ends the stage."""


def ignore_score(_row: CheckpointScore, _limits: Limits) -> None:
    """The OnScore that does nothing."""


class Subject(Protocol):
    """The photos of a subject and the words for it."""

    @property
    def instance_dir(self) -> str:
        """The folder of the photos."""
        ...

    @property
    def instance_prompt(self) -> str:
        """The prompt of a photo without a caption."""
        ...

    @property
    def class_prompt(self) -> str:
        """The prompt of the class images."""
        ...


class RunSettings(Protocol):
    """The settings that prepare the data of a training, from `params.yaml` or from flags."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def subject(self) -> Subject: ...  # noqa: D102
    @property
    def base_model(self) -> BaseModelSettings: ...  # noqa: D102
    @property
    def compute(self) -> ComputeSettings: ...  # noqa: D102
    @property
    def data(self) -> DataSettings: ...  # noqa: D102


@dataclass(frozen=True)
class RunContext:
    """Everything that the stages before the training need from their caller."""

    settings: RunSettings
    places: Places
    progress: Progress = no_progress
    should_stop: StopSignal = never_stop
    shares_cores: bool = False
    """Whether a training, or other tasks of a cluster, run on this machine at the same time."""

    def sampling_lanes(self, device: str) -> int:
        """How many blocks of images to sample at the same time; the bytes do not depend on it.

        Several on free cores: a small model fills no core with more than one thread. One on a GPU,
        which a single block fills.
        """
        if device != "cpu" or self.shares_cores:
            return 1
        free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return max(1, min(_MAX_LANES, (free or 1) // self.settings.compute.num_threads))

    def fingerprint(self, stage: str, inputs: Mapping[str, Any]) -> str:
        """sha256 of the stage's inputs, enough in folders that belong to one run."""
        return files.digest_of({"stage": stage, "inputs": dict(inputs)})


@dataclass(frozen=True)
class StageContext(RunContext):
    """Everything a stage needs from its caller: settings, folders, progress, stop signal."""

    settings: SubjectView
    lock_fd: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    on_score: OnScore = ignore_score

    @property
    def tracking_uri(self) -> str | None:
        """The MLflow store that the environment names."""
        return self.env.get("MLFLOW_TRACKING_URI")

    @property
    def flow_run(self) -> str | None:
        """The address of the Prefect run that this is part of, if a server keeps it."""
        return self.env.get(FLOW_RUN)

    @property
    def is_experiment(self) -> bool:
        """Whether this is a `dvc exp run`, which never registers a version."""
        return "DVC_EXP_NAME" in self.env

    def fingerprint(self, stage: str, inputs: Mapping[str, Any]) -> str:
        """sha256 of everything that the stage's output depends on."""
        settings = config.settings_of(self.settings, stage)
        return files.digest_of({"stage": stage, "settings": settings, "inputs": dict(inputs)})


@contextlib.contextmanager
def publishing(places: Places, stage: str) -> Iterator[Path]:
    """Yield the folder to assemble a stage's output in; on success it becomes the output.

    The exchange alone holds the publish lock, so that DVC never reads a folder during it. The
    caller holds the subject's lock, so leftovers next to the output are those of a killed process.
    """
    target = places.stage_dir(stage)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.remove_asides(target.parent)
    exchange = locks.hold(places.publish_lock, timeout_s=PUBLISH_TIMEOUT_S)
    with files.atomic_dir(target, during_exchange=exchange) as out:
        yield out


def base_identity(context: RunContext) -> BaseModelIdentity:
    """The base model of the settings, by content."""
    from dreambooth_core.models import load  # torch takes seconds, and the data gate needs none

    places = context.places
    return load.resolve_base_model(
        context.settings.base_model, places.root, hash_cache=places.hash_cache
    )


def machine(compute: ComputeSettings) -> list[str | int]:
    """Everything on this machine that changes bits: device type and number of threads."""
    from dreambooth_core.models import load

    return [load.pick_device(compute).type, compute.num_threads]


def settings_that_count(view: SubjectView) -> dict[str, Any]:
    """The settings behind a result, for the page, MLflow's params and a version's tags."""
    sections = ("base_model", "compute", "data", "prior", "train", "evaluate", "select", "subject")
    # accelerate_config and num_processes imply the strategy; a choice is a fact about one training.
    left_out = {"train": {"strategy"}, "subject": {"choice"}}
    dumped = view.model_dump(mode="json", by_alias=True, exclude=left_out)
    # So that pages and versions without them stay the same.
    if view.train.init_from is None:
        dumped["train"].pop("init_from")
    if view.data.caption_rate == 1:
        dumped["data"].pop("caption_rate")
    return {section: dumped[section] for section in sections}


def evaluation_of(context: StageContext) -> Evaluation:
    """The output of the evaluate stage. Raises CorruptRecordError if it is missing."""
    return Evaluation.read(context.places.stage_dir("evaluate"))


def confirmation_of(context: StageContext) -> Evaluation:
    """The output of the confirm stage. Raises CorruptRecordError if it is missing."""
    return Evaluation.read(context.places.stage_dir("confirm"))


def table_of(evaluation: Evaluation) -> Scores:
    """The rows without their samples, the content of `scores.json`."""
    kept = set(ScoreRow.model_fields)
    return Scores(
        harness=evaluation.harness,
        text_range=evaluation.text_range,
        rows=tuple(ScoreRow(**row.model_dump(include=kept)) for row in evaluation.rows),
    )


def row_pictures(evaluated: Path, row: str) -> Path:
    """The folder of a row's images in the output of the evaluate stage."""
    return evaluated / "images" / row.replace(" ", "-")


def picture_name(index: int) -> str:
    """File of image `index` of a row: the suite's images round by round, then the class's."""
    return f"{index:03d}.png"


def run_name(method: str, training_fingerprint: str) -> str:
    """A readable name for the MLflow run of a training."""
    return f"{method}-{training_fingerprint[:8]}"
