"""A script's run, inside the processes that the launcher has started: from photos to the result."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dreambooth_core import files
from dreambooth_core.config import TrainSettings
from dreambooth_core.data.batches import LatentDataset
from dreambooth_core.errors import Stopped
from dreambooth_core.models import load
from dreambooth_core.models.batch import RowsAt
from dreambooth_core.models.lora_layers import require_layers
from dreambooth_core.records import BaseModelIdentity, Manifest
from dreambooth_core.scripts import checkpoints, class_images, export, hub, photos, resume, room
from dreambooth_core.scripts.agreement import from_main
from dreambooth_core.scripts.checkpoints import ResumingRun
from dreambooth_core.scripts.disk import make_folder, require_writable, unmade_on_wrong_input
from dreambooth_core.scripts.flag_checks import notes_on_pictures
from dreambooth_core.scripts.prepare import CACHE, build_latents, masks_text
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.scripts.signals import Stop
from dreambooth_core.scripts.trackers import TrackerSink
from dreambooth_core.scripts.validation import IsDue, Validation, after_epochs, after_steps
from dreambooth_core.supervision import die_with_parent
from dreambooth_core.training import metrics
from dreambooth_core.training.distributed import make_strategy, start_accelerator
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
"""Below the run's own folder: a state put together, for as long as it is read."""


@dataclass(frozen=True)
class _Resumed:
    """Where a run begins: at step 0 without a state, or where a checkpoint stands."""

    step: int = 0
    metrics: str = metrics.to_csv(())
    state: Path | None = None


@dataclass(frozen=True)
class _Sets:
    """The images to train on."""

    instance: Manifest
    class_: Manifest | None

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """What stands for their pixels."""
        return tuple(each.fingerprint for each in (self.instance, self.class_) if each)


def run(plan: ScriptSettings, *, stop: Stop) -> int:
    """Do what the command line asks for; the exit code (1 when it was stopped).

    Raises DataError and SettingsError for what the user must mend, StageError for failed work.
    """
    if plan.launcher.by_accelerate:
        die_with_parent()
    accelerator = start_accelerator(_job(plan, plan.train(seed=0, max_train_steps=1)))
    made = unmade_on_wrong_input(plan.output_dir, scratch=plan.state_dir)
    try:
        with made if accelerator.is_main_process else contextlib.nullcontext():
            return _Session(plan, accelerator, stop).run()
    except Stopped as stopped:
        if accelerator.is_main_process:
            log_line(f"{stopped}")
        return stopped.exit_code
    finally:
        accelerator.end_training()


class _Session:
    """One run on one of its processes."""

    def __init__(self, plan: ScriptSettings, accelerator: Accelerator, stop: Stop) -> None:
        self._plan, self._accelerator, self._stop = plan, accelerator, stop
        self._is_main = accelerator.is_main_process
        self._found: resume.Found | None = None

    def run(self) -> int:
        plan = self._plan
        from_main(self._accelerator, self._begin)
        self._found = from_main(self._accelerator, lambda: _checkpoint_to_resume(plan))
        seed = from_main(self._accelerator, lambda: seed_of(plan, self._found))
        repository = from_main(
            self._accelerator, lambda: hub.create_repository(plan) if plan.flags.push_to_hub else ""
        )
        with self._stop.watched():
            sets = self._images(seed)
        train = plan.train(seed=seed, max_train_steps=self._num_steps(sets))
        if self._is_main and not plan.flags.max_train_steps:  # else it was told at the beginning
            for note in notes_on_pictures(plan.flags, num_steps=train.max_train_steps):
                log_line(f"note: {note}")
        from_main(
            self._accelerator,
            lambda: build_latents(
                plan,
                instance=sets.instance,
                class_=sets.class_,
                device=self._accelerator.device,
                stop=self._stop,
            ),
        )
        trainer = self._train(_job(plan, train), sets)
        with trainer.state.gathered_weights():
            if self._is_main:
                export.write_result(plan, trainer.model)
        if self._is_main:
            shutil.rmtree(plan.state_dir, ignore_errors=True)
            if repository:
                self._stop.part_with(hub.not_uploaded(plan, repository))
                hub.upload(plan, repository)
        self._accelerator.wait_for_everyone()
        return 0

    def _begin(self) -> None:
        """Tell what is worth telling, and sweep up after killed runs. Raises SettingsError."""
        plan = self._plan
        for note in plan.notes:
            log_line(f"note: {note}")
        _require_folder(plan.output_dir)
        files.remove_asides(plan.output_dir)
        base = load.find_base_model(plan.base_model, Path.cwd()).folder
        load.pipeline_family(base)
        if lora := plan.train(seed=0, max_train_steps=1).lora:
            with_text = plan.flags.train_text_encoder
            require_layers(load.empty_networks(base, with_text=with_text), lora)
        export.check_places(plan, base)
        _require_folder(plan.state_dir)

    def _images(self, seed: int) -> _Sets:
        plan = self._plan
        instance = from_main(
            self._accelerator, lambda: photos.accept_photos(plan, should_stop=self._stop)
        )
        folder = plan.class_dir
        if folder is None:
            return _Sets(instance, None)
        class_ = class_images.complete(
            plan,
            folder,
            seed=seed,
            accelerator=self._accelerator,
            should_stop=self._stop,
        )
        return _Sets(instance, class_)

    def _num_steps(self, sets: _Sets) -> int:
        flags = self._plan.flags
        return flags.max_train_steps or flags.num_train_epochs * self._steps_per_epoch(sets)

    def _steps_per_epoch(self, sets: _Sets) -> int:
        num_class = len(sets.class_.images) if sets.class_ else 0
        num_instance = len(sets.instance.images)
        return self._plan.steps_per_epoch(num_instance=num_instance, num_class=num_class)

    def _train(self, job: TrainJob, sets: _Sets) -> StepTrainer:
        """Train to the last step. Raises Stopped when a stop came first; its step is saved."""
        accelerator = self._accelerator
        settings = _told_settings(self._plan, job.train)
        model = load_trainable_model(job, device=accelerator.device)
        model.denoiser.masks_text = masks_text(self._plan)
        resumed = self._resumed(model, settings)
        data = LatentDataset(
            job.cache_dir, seed=job.train.seed, with_class_rows=sets.class_ is not None
        )
        trainer = self._trainer(job, model, data.rows_at, resumed.state)
        accelerator.wait_for_everyone()
        if self._is_main:
            shutil.rmtree(self._plan.state_dir / _RESUMED, ignore_errors=True)  # it has been read
        if self._is_main:
            log_line(_first_word(resumed.step, last=job.train.max_train_steps))
        with self._sink(settings) as sink:
            loop = Loop(
                job,
                trainer,
                accelerator=accelerator,
                layout=self._layout(settings, sets),
                sink=sink,
                rows=metrics.from_csv(resumed.metrics, last_step=resumed.step),
                callbacks=self._callbacks(sink, sets, train=job.train),
            )
            self._stop.watch()  # until the result is written
            ended = loop.run(resumed.step, should_stop=self._stop)
        if ended.how == "stopped":
            raise Stopped(
                f"stopped and saved at step {ended.step}",
                hint="--resume_from_checkpoint latest goes on from there",
            )
        return trainer

    def _trainer(
        self, job: TrainJob, model: TrainableModel, rows_at: RowsAt, state: Path | None
    ) -> StepTrainer:
        """Torch's, or JAX's for the script that trains through it."""
        accelerator, train = self._accelerator, job.train
        if self._plan.script.engine == "jax":
            from dreambooth_core.jax.trainer import JaxTrainer  # an optional extra

            trainer = JaxTrainer(model, settings=train, rows_at=rows_at, state=state)
        else:
            strategy = make_strategy(model, accelerator=accelerator, settings=train, state=state)
            trainer = Trainer(strategy, accelerator=accelerator, settings=train, rows_at=rows_at)
        self._require_room(job, trainer)
        return trainer

    def _require_room(self, job: TrainJob, trainer: StepTrainer) -> None:
        """Raise StageError unless the disk has room; a new run learns the sizes by a dry run."""
        plan = self._plan
        if self._found is None:
            kept = room.kept(plan, last=job.train.max_train_steps)
            dry_run(job, trainer.state, kept, is_main=self._is_main)
        else:
            found = self._found
            from_main(self._accelerator, lambda: room.check_resume(plan, job, trainer.model, found))

    def _layout(self, settings: dict[str, Any], sets: _Sets) -> checkpoints.ScriptLayout:
        flags = self._plan.flags
        run = from_main(self._accelerator, lambda: self._run_name(settings, sets))
        return checkpoints.ScriptLayout(
            self._plan.output_dir,
            method=self._plan.script.method,
            every=flags.checkpointing_steps,
            limit=flags.checkpoints_total_limit,
            settings=settings,
            run=run,
            images=sets.fingerprints,
        )

    def _run_name(self, settings: dict[str, Any], sets: _Sets) -> str:
        """Which run the checkpoints will belong to; what is there of others is told."""
        folder, images = self._plan.output_dir, sets.fingerprints
        if self._found and self._found[1].images not in ((), images):
            log_line("note: other photos or class images than the checkpoint's")
        run = resume.name_run(folder, self._found, settings=settings, images=images)
        if others := resume.strangers(folder, run):
            log_line(
                f"note: {', '.join(others)} in {folder} are of another run: they stay, until a "
                "checkpoint of the same step takes their place; `latest` is of this run as soon as "
                "it has saved one"
            )
        return run

    @contextlib.contextmanager
    def _sink(self, settings: dict[str, Any]) -> Iterator[TrackerSink]:
        flags = self._plan.flags
        sink = TrackerSink(
            flags.report_to if self._is_main else "none",
            logging_dir=self._plan.output_dir / flags.logging_dir,
            config=settings,
        )
        try:
            yield sink
        finally:
            sink.close(status="FINISHED")

    def _callbacks(self, sink: TrackerSink, sets: _Sets, *, train: TrainSettings) -> list[Callback]:
        flags = self._plan.flags
        if flags.validation_prompt is None:
            return []
        return [
            Validation(
                self._plan,
                prompt=flags.validation_prompt,
                is_due=self._when_to_draw(sets, last=train.max_train_steps),
                seed=train.seed,
                take=lambda images, step: sink.pictures(images, name="validation", step=step),
                is_main=self._is_main,
            )
        ]

    def _when_to_draw(self, sets: _Sets, *, last: int) -> IsDue:
        """By steps or by epochs: each script has one of the two flags."""
        flags = self._plan.flags
        steps = getattr(flags, "validation_steps", None)
        if steps is not None:
            return after_steps(steps)
        epochs: int = flags.validation_epochs  # pyright: ignore[reportAttributeAccessIssue]
        return after_epochs(epochs, steps_per_epoch=self._steps_per_epoch(sets), last=last)

    def _resumed(self, model: TrainableModel, settings: dict[str, Any]) -> _Resumed:
        """Where to go on from. Raises SettingsError when other weights are trained now."""
        if self._found is None:
            return _Resumed()
        path, record = self._found
        if self._is_main:
            for change in checkpoints.changes(record, settings):
                log_line(f"note: another setting than the checkpoint's: {change}")
        launcher, shapes = self._plan.launcher, {n: p.shape for n, p in model.trainable.items()}
        kind = state_kind.of_launch(launcher.strategy, num_processes=launcher.num_processes)
        run, scratch = ResumingRun(settings, kind, shapes), self._plan.state_dir / _RESUMED
        checkpoints.check_fits(path, shapes)
        state = from_main(
            self._accelerator,
            lambda: checkpoints.state_to_resume(path, record, run, scratch=scratch),
        )
        return _Resumed(record.step, checkpoints.read_metrics(path), state)


def _require_folder(folder: Path) -> None:
    make_folder(folder, flag="output_dir")
    require_writable(folder, flag="output_dir")


def _first_word(step: int, *, last: int) -> str:
    if step < last:
        return f"training starts after step {step} of {last}"
    return (
        f"note: nothing is left to train, as --max_train_steps is {last}: the weights of "
        f"checkpoint-{step} are the result"
    )


def _checkpoint_to_resume(plan: ScriptSettings) -> resume.Found | None:
    name = plan.flags.resume_from_checkpoint
    if name is None:
        return None
    found = resume.find_checkpoint(plan.output_dir, name)
    if found is None:
        log_line(f"no whole checkpoint in {plan.output_dir}: a new run begins")
    else:
        log_line(f"resuming from {found[0].name}")
    return found


def seed_of(plan: ScriptSettings, found: resume.Found | None) -> int:
    """The seed that was given, else that of the checkpoint, else the script's own or a random one.

    A random one is told.
    """
    given, seed = "seed" in plan.flags.model_fields_set, plan.flags.seed
    if found is not None and not given:
        return int(found[1].settings["seed"])
    if seed is not None:
        return seed
    seed = secrets.randbelow(2**31)
    log_line(f"seed {seed} (a random one; give it as --seed to have the same run again)")
    return seed


def _job(plan: ScriptSettings, train: TrainSettings) -> TrainJob:
    """The core's description of the work, with the script's folders."""
    state, log_every = plan.state_dir, max(1, min(_LOG_AT_MOST_EVERY, train.max_train_steps // 10))
    name = plan.flags.pretrained_model_name_or_path
    return TrainJob(
        subject="subject",
        fingerprint="",
        base_model=plan.base_model,
        base_identity=BaseModelIdentity(name=name, revision=plan.flags.revision, sha256=""),
        compute=plan.compute,
        train=train,
        prior_loss_weight=plan.flags.prior_loss_weight if plan.class_dir else None,
        log_every_steps=log_every,
        async_checkpointing=True,
        workspace_root=Path.cwd(),
        cache_dir=state / CACHE,
        state_dir=state,
        out_dir=state / "out",
        log_file=state / "train.log",
    )


def _told_settings(plan: ScriptSettings, train: TrainSettings) -> dict[str, Any]:
    """The flags as numbers and words, for trackers and checkpoints; without secrets."""
    told = plan.flags.model_dump(exclude=set(_SECRETS))
    told |= {"seed": train.seed, "max_train_steps": train.max_train_steps}
    return {name: value for name, value in told.items() if value is not None}
