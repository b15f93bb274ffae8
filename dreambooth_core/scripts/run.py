"""A script's run, inside the processes that the launcher has started: from photos to the result."""

from __future__ import annotations

import contextlib
import shutil

from accelerate import Accelerator

from dreambooth_core.errors import Stopped
from dreambooth_core.scripts import disk, export, hub, prepare, resume, training
from dreambooth_core.scripts.flag_checks import notes_on_pictures
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.scripts.signals import Stop
from dreambooth_core.scripts.training import TrainingInputs
from dreambooth_core.supervision import die_with_parent
from dreambooth_core.training.distributed import broadcast_from_main, start_accelerator
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.trainer import StepTrainer


def run(settings: ScriptSettings, *, stop: Stop) -> int:
    """Run a command line to its end; the exit code is 1 if it was stopped.

    Raises DataError and SettingsError for wrong input, StageError for work that failed.
    """
    if settings.launcher.by_accelerate:
        die_with_parent()
    any_train = settings.train(seed=0, max_train_steps=1)
    accelerator = start_accelerator(settings.job(any_train))
    cleanup = disk.removed_on_wrong_input(settings.output_dir, scratch=settings.state_dir)
    try:
        with cleanup if accelerator.is_main_process else contextlib.nullcontext():
            inputs, repository = _prepare(settings, accelerator, stop)
            _publish(inputs, training.train(inputs, stop=stop), repository, stop)
            return 0
    except Stopped as stopped:
        if accelerator.is_main_process:
            log_line(f"{stopped}")
        return stopped.exit_code
    finally:
        accelerator.end_training()


def _prepare(
    settings: ScriptSettings, accelerator: Accelerator, stop: Stop
) -> tuple[TrainingInputs, str]:
    """Prepare the data; also create the hub's repository if the result goes there."""
    if accelerator.is_main_process:
        for note in settings.notes:
            log_line(f"note: {note}")
    broadcast_from_main(accelerator, lambda: export.prepare_output_dir(settings))
    found = broadcast_from_main(accelerator, lambda: resume.checkpoint_of(settings))
    seed = broadcast_from_main(accelerator, lambda: resume.seed_of(settings, found))
    is_pushed = settings.flags.push_to_hub
    repository = broadcast_from_main(
        accelerator, lambda: hub.create_repository(settings) if is_pushed else ""
    )
    with stop.watched():
        images = prepare.prepare_images(settings, seed=seed, accelerator=accelerator, stop=stop)
    steps_per_epoch = settings.steps_per_epoch(
        num_instance=images.num_instance, num_class=images.num_class
    )
    max_train_steps = settings.flags.max_train_steps
    num_steps = max_train_steps or settings.flags.num_train_epochs * steps_per_epoch
    if accelerator.is_main_process and max_train_steps is None:  # else noted at the beginning
        for note in notes_on_pictures(settings.flags, num_steps=num_steps):
            log_line(f"note: {note}")
    broadcast_from_main(accelerator, lambda: prepare.encode_images(settings, stop=stop))
    inputs = TrainingInputs(
        settings=settings,
        train=settings.train(seed=seed, max_train_steps=num_steps),
        accelerator=accelerator,
        fingerprints=images.fingerprints,
        steps_per_epoch=steps_per_epoch,
        found=found,
    )
    return inputs, repository


def _publish(inputs: TrainingInputs, trainer: StepTrainer, repository: str, stop: Stop) -> None:
    """Write the result into output_dir, remove the run's own folder, and upload if asked to."""
    settings, accelerator = inputs.settings, inputs.accelerator
    with trainer.state.gathered_weights():
        if accelerator.is_main_process:
            export.write_result(settings, trainer.model)
    if accelerator.is_main_process:
        shutil.rmtree(settings.state_dir, ignore_errors=True)
        if repository:
            stop.exit_on_stop(hub.not_uploaded(settings, repository))
            hub.upload(settings, repository)
    accelerator.wait_for_everyone()
