"""The train stage: run the trainer in separate processes, and publish its output."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from dreambooth_core import files
from dreambooth_core.config import read_launch_config
from dreambooth_core.errors import Stopped
from dreambooth_core.logs import logger
from dreambooth_core.pipeline.common import (
    StageContext,
    base_identity,
    machine,
    publishing,
)
from dreambooth_core.ports import StopSignal
from dreambooth_core.records import LatentCache, TrainingRun
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.launch import launcher
from dreambooth_core.training.launch.accelerate_config import node_of
from dreambooth_core.training.launch.launcher import TrainingOutcome
from dreambooth_core.workspace import Workspace

if TYPE_CHECKING:
    from dreambooth_core.pipeline.init_from import Found

_COPIES_OF_CHECKPOINTS = 3
"""In the store, in the stage's output and in DVC's cache; a disk with reflinks stores one."""


def run(context: StageContext) -> TrainingRun:
    """Train (or continue) and publish. Raises Stopped, StageError and SettingsError."""
    job = make_job(context)
    patience = context.settings.select.early_stopping_patience
    if patience is not None and node_of(context.env) is None:
        from dreambooth_core.pipeline import early_stopping  # loads the scorers' libraries

        job = early_stopping.train_until_decided(
            context,
            job,
            patience=patience,
            launch=functools.partial(launch, context),
            pauses_training=early_stopping.must_pause(context),
        )
    outcome = launch(context, job, context.should_stop)
    if outcome.run is None:
        saved = "nothing new was saved" if outcome.step is None else f"saved at step {outcome.step}"
        raise Stopped(f"the training was stopped, {saved}", hint="run it again to continue")
    with publishing(context.places, "train") as out:
        files.copy_tree(job.out_dir, out)
    return outcome.run


def launch(context: StageContext, job: TrainJob, should_stop: StopSignal) -> TrainingOutcome:
    """Run the trainer until it has finished or stopped. Raises StageError and SettingsError."""
    return launcher.run_trainer(
        job,
        grace_s=context.settings.runtime.stop_grace_s,
        on_line=logger.info,
        progress=context.progress,
        should_stop=should_stop,
        node=node_of(context.env),
        lock_fd=context.lock_fd,
    )


def make_job(context: StageContext) -> TrainJob:
    """The trainer's job. Its fingerprint is the name of the folder that the trainer works in."""
    view, places, workspace = context.settings, context.places, Workspace(context.places.root)
    identity = base_identity(context)
    cache_dir = places.stage_dir("cache")
    initial = _initial_weights(context)
    launched = read_launch_config(workspace, view.train)
    own = context.fingerprint(
        "train",
        {
            "base_model": identity.sha256,
            "machine": machine(view.compute),
            "cache": LatentCache.read(cache_dir).fingerprint,
            **({"launch": launched.to_json()} if launched else {}),
            **({"init_from": initial.weights.sha256} if initial else {}),
        },
    )
    state = places.store_dir("train", own)
    return TrainJob(
        subject=view.name,
        fingerprint=own,
        base_model=view.base_model,
        base_identity=identity,
        compute=view.compute,
        train=view.train,
        prior_loss_weight=view.prior.prior_loss_weight if view.prior else None,
        log_every_steps=view.runtime.log_every_steps,
        async_checkpointing=view.runtime.async_checkpointing,
        workspace_root=places.root,
        cache_dir=cache_dir,
        state_dir=state,
        out_dir=state / "out",
        copies_of_checkpoints=_COPIES_OF_CHECKPOINTS,
        launch=launched,
        init_from=initial.weights if initial else None,
        init_dir=initial.folder if initial else None,
        log_file=places.log_file("train"),
        report_to=view.runtime.report_to,
        # An experiment of DVC's leaves no trace in the registry's store. The store's address goes
        # by the environment, as it may hold a password and the job is a file.
        tracking={} if context.is_experiment else {"name": view.model_name},
    )


def _initial_weights(context: StageContext) -> Found | None:
    if context.settings.train.init_from is None:
        return None
    from dreambooth_core.pipeline import init_from  # MLflow takes seconds to import

    return init_from.find(context)
