"""The training of a script: the shared loop with the script's checkpoints and trackers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image

from dreambooth_core.config import TrainSettings
from dreambooth_core.data.batches import LatentDataset
from dreambooth_core.environment import is_installed
from dreambooth_core.errors import Stopped
from dreambooth_core.scripts import disk, resume
from dreambooth_core.scripts.checkpoints import ScriptCheckpoint, ScriptLayout
from dreambooth_core.scripts.flags import TRACKER_PACKAGES
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.scripts.signals import Stop
from dreambooth_core.scripts.validation import Validation, make_is_due
from dreambooth_core.training.distributed import broadcast_from_main, make_strategy
from dreambooth_core.training.loop import Callback, Loop
from dreambooth_core.training.trackers import TrackerSink
from dreambooth_core.training.trainable import TrainableModel, load_trainable_model
from dreambooth_core.training.trainer import StepTrainer, Trainer

_SECRETS = ("hub_token",)
_PROJECT = "dreambooth"
"""The project name of the guide's scripts: TensorBoard writes to `logs/dreambooth`."""
_RENAMED = {"learning_rate": "lr"}


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """Everything that one process of a script trains with."""

    settings: ScriptSettings
    train: TrainSettings
    accelerator: Accelerator
    fingerprints: tuple[str, ...]
    """One of each set of images."""
    steps_per_epoch: int
    found: resume.Found | None
    """The checkpoint that the run resumes from."""

    @property
    def is_main(self) -> bool:
        """Whether this is the main process."""
        return self.accelerator.is_main_process

    @property
    def recorded(self) -> dict[str, Any]:
        """The flags without secrets, for trackers and checkpoints."""
        values = self.settings.flags.model_dump(exclude=set(_SECRETS))
        values |= {"seed": self.train.seed, "max_train_steps": self.train.max_train_steps}
        return {name: value for name, value in values.items() if value is not None}


def train(inputs: TrainingInputs, *, stop: Stop) -> StepTrainer:
    """Train to the last step. Raises Stopped if a stop came first; its step is saved."""
    settings, accelerator = inputs.settings, inputs.accelerator
    job = settings.job(inputs.train)
    model = load_trainable_model(job, device=accelerator.device)
    model.denoiser.masks_text = settings.masks_text
    start = resume.start_of(
        settings,
        inputs.found,
        recorded=inputs.recorded,
        shapes={name: parameter.shape for name, parameter in model.trainable.items()},
        accelerator=accelerator,
    )
    trainer = _make_trainer(inputs, model, start.state)
    disk.require_room(settings, job, trainer, inputs.found, accelerator=accelerator)
    accelerator.wait_for_everyone()
    if inputs.is_main:
        resume.begin(settings, start, last=inputs.train.max_train_steps)
    with _tracking(inputs) as sink:
        loop = Loop(
            job,
            trainer,
            layout=_layout(inputs),
            sink=sink,
            rows=start.rows,
            callbacks=_callbacks(inputs, sink),
        )
        stop.watch()  # until the result is written
        ended = loop.run(start.step, should_stop=stop)
    if ended.how == "stopped":
        raise Stopped(
            f"stopped and saved at step {ended.step}",
            hint="--resume_from_checkpoint latest continues from there",
        )
    return trainer


def _make_trainer(inputs: TrainingInputs, model: TrainableModel, state: Path | None) -> StepTrainer:
    """Torch's trainer, or JAX's for the script that trains through it."""
    accelerator, train, settings = inputs.accelerator, inputs.train, inputs.settings
    with_class_rows = settings.class_dir is not None
    data = LatentDataset(
        settings.places.stage_dir("cache"), seed=train.seed, with_class_rows=with_class_rows
    )
    if settings.script.engine == "jax":
        from dreambooth_core.jax.trainer import JaxTrainer  # an optional extra

        return JaxTrainer(model, settings=train, rows_at=data.rows_at, state=state)
    strategy = make_strategy(model, accelerator=accelerator, settings=train, state=state)
    return Trainer(strategy, rows_at=data.rows_at)


def _callbacks(inputs: TrainingInputs, sink: _Trackers) -> list[Callback]:
    """Validation if there is a prompt for it."""
    settings, train = inputs.settings, inputs.train
    if settings.flags.validation_prompt is None:
        return []
    is_due = make_is_due(
        settings.flags, steps_per_epoch=inputs.steps_per_epoch, last=train.max_train_steps
    )
    return [
        Validation(
            settings,
            is_due=is_due,
            seed=train.seed,
            log=lambda images, step: sink.images(images, name="validation", step=step),
            is_main=inputs.is_main,
        )
    ]


def _layout(inputs: TrainingInputs) -> ScriptLayout:
    settings, recorded, images = inputs.settings, inputs.recorded, inputs.fingerprints
    run = broadcast_from_main(
        inputs.accelerator,
        lambda: resume.run_of(settings, inputs.found, recorded=recorded, images=images),
    )
    return ScriptLayout(
        settings.output_dir,
        every=settings.flags.checkpointing_steps,
        limit=settings.flags.checkpoints_total_limit,
        record=ScriptCheckpoint(
            step=0,
            method=settings.script.method,
            settings=recorded,
            files={},
            run=run,
            images=images,
        ),
    )


class _Trackers:
    """The trackers of `--report_to`; they get the learning rate as `lr`, as in the guide."""

    def __init__(self, inputs: TrainingInputs) -> None:
        flags = inputs.settings.flags
        self._sinks = [
            TrackerSink(
                name,
                project=_PROJECT,
                logging_dir=inputs.settings.output_dir / flags.logging_dir,
                config=inputs.recorded,
            )
            for name, package in TRACKER_PACKAGES.items()
            if inputs.is_main and flags.report_to in (name, "all") and is_installed(package)
        ]

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Log numbers at a step."""
        renamed = {_RENAMED.get(name, name): value for name, value in values.items()}
        for sink in self._sinks:
            sink.metrics(renamed, step=step)

    def images(self, images: Sequence[Image.Image], *, name: str, step: int) -> None:
        """Log images of one size under one name."""
        for sink in self._sinks:
            sink.images(images, name=name, step=step)

    def close(self, *, status: str) -> None:
        """Flush for a limited time."""
        for sink in self._sinks:
            sink.close(status=status)


@contextlib.contextmanager
def _tracking(inputs: TrainingInputs) -> Iterator[_Trackers]:
    trackers = _Trackers(inputs)
    try:
        yield trackers
    finally:
        trackers.close(status="FINISHED")
