"""The training of a script: the shared loop with the script's checkpoints and trackers."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dreambooth_core.config import TrainSettings
from dreambooth_core.data.batches import LatentDataset
from dreambooth_core.errors import Stopped
from dreambooth_core.records import BaseModelIdentity
from dreambooth_core.scripts import checkpoints, disk, resume, validation
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.scripts.signals import Stop
from dreambooth_core.scripts.trackers import TrackerSink
from dreambooth_core.training import metrics
from dreambooth_core.training.distributed import broadcast_from_main, make_strategy
from dreambooth_core.training.dry_run import dry_run
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.loop import Callback, Loop
from dreambooth_core.training.optim import state_kind
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.trainable import TrainableModel, load_trainable_model
from dreambooth_core.training.trainer import StepTrainer, Trainer

_LOG_AT_MOST_EVERY = 10
_SECRETS = ("hub_token",)
_RESUMED = "resumed"
"""A state that is put together for a resume, below the run's own folder until it is loaded."""


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


@dataclass(frozen=True)
class _Start:
    """The completed steps, their metrics table, and the state to continue from."""

    step: int = 0
    metrics: str = metrics.to_csv(())
    state: Path | None = None


def make_job(settings: ScriptSettings, train: TrainSettings) -> TrainJob:
    """The trainer's job, with the script's folders."""
    places, base = settings.places, settings.base_model
    return TrainJob(
        subject="subject",
        fingerprint="",
        base_model=base,
        base_identity=BaseModelIdentity(
            name=base.pretrained_model_name_or_path, revision=base.revision, sha256=""
        ),
        compute=settings.compute,
        train=train,
        prior_loss_weight=settings.flags.prior_loss_weight if settings.class_dir else None,
        log_every_steps=max(1, min(_LOG_AT_MOST_EVERY, train.max_train_steps // 10)),
        async_checkpointing=True,
        workspace_root=places.root,
        cache_dir=places.stage_dir("cache"),
        state_dir=settings.state_dir,
        out_dir=settings.state_dir / "out",
        log_file=settings.state_dir / "train.log",
    )


def train(inputs: TrainingInputs, *, stop: Stop) -> StepTrainer:
    """Train to the last step. Raises Stopped if a stop came first; its step is saved."""
    settings, accelerator = inputs.settings, inputs.accelerator
    job = make_job(settings, inputs.train)
    model = load_trainable_model(job, device=accelerator.device)
    model.denoiser.masks_text = settings.masks_text
    start = _start(inputs, model)
    trainer = _make_trainer(inputs, job, model, start)
    _require_room(inputs, job, trainer)
    accelerator.wait_for_everyone()
    if inputs.is_main:
        shutil.rmtree(settings.state_dir / _RESUMED, ignore_errors=True)  # it is loaded
        log_line(_first_line(start.step, last=inputs.train.max_train_steps))
    with _tracking(inputs) as sink:
        loop = Loop(
            job,
            trainer,
            accelerator=accelerator,
            layout=_layout(inputs),
            sink=sink,
            rows=metrics.from_csv(start.metrics, last_step=start.step),
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


def _start(inputs: TrainingInputs, model: TrainableModel) -> _Start:
    """The start of the run. Raises SettingsError if the checkpoint has other weights."""
    if inputs.found is None:
        return _Start()
    path, record = inputs.found
    if inputs.is_main:
        for change in checkpoints.changes(record, inputs.recorded):
            log_line(f"note: another setting than the checkpoint's: {change}")
    shapes = {name: parameter.shape for name, parameter in model.trainable.items()}
    checkpoints.check_fits(path, shapes)
    launcher = inputs.settings.launcher
    kind = state_kind.of_launch(launcher.strategy, num_processes=launcher.num_processes)
    run = checkpoints.ResumingRun(inputs.recorded, kind, shapes)
    scratch = inputs.settings.state_dir / _RESUMED
    state = broadcast_from_main(
        inputs.accelerator,
        lambda: checkpoints.state_to_resume(path, record, run, scratch=scratch),
    )
    return _Start(record.step, checkpoints.read_metrics(path), state)


def _make_trainer(
    inputs: TrainingInputs, job: TrainJob, model: TrainableModel, start: _Start
) -> StepTrainer:
    """Torch's trainer, or JAX's for the script that trains through it."""
    accelerator, train = inputs.accelerator, inputs.train
    with_class_rows = inputs.settings.class_dir is not None
    data = LatentDataset(job.cache_dir, seed=train.seed, with_class_rows=with_class_rows)
    if inputs.settings.script.engine == "jax":
        from dreambooth_core.jax.trainer import JaxTrainer  # an optional extra

        return JaxTrainer(model, settings=train, rows_at=data.rows_at, state=start.state)
    strategy = make_strategy(model, accelerator=accelerator, settings=train, state=start.state)
    return Trainer(strategy, accelerator=accelerator, settings=train, rows_at=data.rows_at)


def _require_room(inputs: TrainingInputs, job: TrainJob, trainer: StepTrainer) -> None:
    """Raise StageError unless the disk has room; a new run measures step 0 in a dry run."""
    settings, found = inputs.settings, inputs.found
    if found is None:
        kept = disk.kept(settings, last=job.train.max_train_steps)
        dry_run(job, trainer.state, kept, is_main=inputs.is_main)
        return
    broadcast_from_main(
        inputs.accelerator,
        lambda: disk.check_room_to_resume(settings, job, trainer.model, found),
    )


def _first_line(step: int, *, last: int) -> str:
    if step < last:
        return f"training starts after step {step} of {last}"
    return (
        f"note: nothing is left to train, as --max_train_steps is {last}: the weights of "
        f"checkpoint-{step} are the result"
    )


def _layout(inputs: TrainingInputs) -> checkpoints.ScriptLayout:
    flags = inputs.settings.flags
    return checkpoints.ScriptLayout(
        inputs.settings.output_dir,
        method=inputs.settings.script.method,
        every=flags.checkpointing_steps,
        limit=flags.checkpoints_total_limit,
        settings=inputs.recorded,
        run=broadcast_from_main(inputs.accelerator, lambda: _run_name(inputs)),
        images=inputs.fingerprints,
    )


def _run_name(inputs: TrainingInputs) -> str:
    """The run that new checkpoints belong to; checkpoints of other runs are reported."""
    folder, found, images = inputs.settings.output_dir, inputs.found, inputs.fingerprints
    if found and found[1].images not in ((), images):
        log_line("note: other photos or class images than the checkpoint's")
    run = resume.name_run(folder, found, settings=inputs.recorded, images=images)
    if others := resume.foreign_checkpoints(folder, run):
        log_line(
            f"note: {', '.join(others)} in {folder} are of another run: they stay, until a "
            "checkpoint of the same step takes their place; `latest` is of this run as soon as "
            "it has saved one"
        )
    return run


@contextlib.contextmanager
def _tracking(inputs: TrainingInputs) -> Iterator[TrackerSink]:
    flags = inputs.settings.flags
    sink = TrackerSink(
        flags.report_to if inputs.is_main else "none",
        logging_dir=inputs.settings.output_dir / flags.logging_dir,
        config=inputs.recorded,
    )
    try:
        yield sink
    finally:
        sink.close(status="FINISHED")


def _callbacks(inputs: TrainingInputs, sink: TrackerSink) -> list[Callback]:
    """The validation pictures, by steps or by epochs: each script has one of the two flags."""
    flags = inputs.settings.flags
    if flags.validation_prompt is None:
        return []
    steps, epochs = (getattr(flags, f"validation_{unit}", None) for unit in ("steps", "epochs"))
    is_due = validation.after_steps(steps or 1)
    if epochs is not None:
        last = inputs.train.max_train_steps
        is_due = validation.after_epochs(epochs, steps_per_epoch=inputs.steps_per_epoch, last=last)
    return [
        validation.Validation(
            inputs.settings,
            prompt=flags.validation_prompt,
            is_due=is_due,
            seed=inputs.train.seed,
            log=lambda images, step: sink.images(images, name="validation", step=step),
            is_main=inputs.is_main,
        )
    ]
