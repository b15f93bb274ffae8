"""The trainer process: what `accelerate launch` starts, once per device."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState

from dreambooth_core.errors import DreamBoothError
from dreambooth_core.models.denoiser import RowsAt
from dreambooth_core.ports import MetricSink, NullSink, StopSignal
from dreambooth_core.supervision import die_with_parent, stop_on_signals
from dreambooth_core.training.checkpoints import published
from dreambooth_core.training.checkpoints.layout import PipelineLayout
from dreambooth_core.training.checkpoints.resume_state import Start, find_start
from dreambooth_core.training.distributed import (
    broadcast_from_main,
    make_strategy,
    start_accelerator,
)
from dreambooth_core.training.dry_run import check_room_to_go_on, dry_run, kept_in_store
from dreambooth_core.training.job import Ended, TrainJob, write_ended
from dreambooth_core.training.loop import Loop
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.trainable import load_trainable_model
from dreambooth_core.training.trainer import Trainer

OpenRows = Callable[[TrainJob], RowsAt]
"""Opens the latent cache of a job; called only when there is something to train."""
OpenSink = Callable[[TrainJob], MetricSink]
"""Opens the metric sink of a job; called in the main process only."""


def main(job_path: Path, *, open_rows: OpenRows, open_sink: OpenSink) -> int:
    """Do the job written at `job_path` and leave the marker that says how it ended.

    SIGTERM and SIGINT, and the death of the launcher, let the process save and end.
    """
    stop = stop_on_signals()
    die_with_parent()
    job = TrainJob.load(job_path)
    ended = _work_or_explain(job, open_rows, open_sink, stop.is_set)
    return ended.exit_code


def _work_or_explain(
    job: TrainJob, open_rows: OpenRows, open_sink: OpenSink, should_stop: StopSignal
) -> Ended:
    """The job's end; every failure becomes a marker that the parent process can show."""
    try:
        ended = work(job, open_rows=open_rows, open_sink=open_sink, should_stop=should_stop)
    except DreamBoothError as error:
        ended = Ended(how="failed", step=0, error=str(error), exit_code=error.exit_code)
        log_line(f"error: {error}")
    except Exception as error:
        # The edge of the process: whatever it is, the user must see it, with its traceback.
        with contextlib.suppress(OSError):
            traceback.print_exc()
        ended = Ended(how="failed", step=0, error=_explain(error), exit_code=1)
    if ended.how == "failed" or PartialState().is_main_process:
        write_ended(job.state_dir, ended)
    return ended


def _explain(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.OutOfMemoryError):
        text += "; what to do: turn on train.gradient_checkpointing or lower train_batch_size"
    return text


def work(
    job: TrainJob, *, open_rows: OpenRows, open_sink: OpenSink, should_stop: StopSignal
) -> Ended:
    """Train the job from where it stands to its end, and make its output folder.

    Raises SettingsError for settings that this machine cannot serve and StageError for a run that
    cannot go on.
    """
    accelerator = start_accelerator(job)
    try:
        start = broadcast_from_main(accelerator, lambda: find_start(job))
        table = start.finished_table
        if table is None:
            ended, table = _train(job, accelerator, start, open_rows, open_sink, should_stop)
            if ended.how == "stopped":
                return ended
        if accelerator.is_main_process:
            published.assemble(job, metrics=table)
        return Ended(how="done", step=job.train.max_train_steps)
    finally:
        accelerator.end_training()


def _train(
    job: TrainJob,
    accelerator: Accelerator,
    start: Start,
    open_rows: OpenRows,
    open_sink: OpenSink,
    should_stop: StopSignal,
) -> tuple[Ended, str]:
    """Train from `start` on; returns how it ended and the metrics table."""
    sink = open_sink(job) if accelerator.is_main_process else NullSink()
    status = "FAILED"
    try:
        model = load_trainable_model(job, device=accelerator.device)
        strategy = make_strategy(
            model, accelerator=accelerator, settings=job.train, state=start.state(job)
        )
        trainer = Trainer(
            strategy,
            accelerator=accelerator,
            settings=job.train,
            rows_at=open_rows(job),
        )
        if job.dry_run and start.record is None:
            dry_run(job, strategy, kept_in_store(job), is_main=accelerator.is_main_process)
        if accelerator.is_main_process:
            if start.record is not None:
                check_room_to_go_on(job, model)
            log_line(f"training starts after step {start.step} of {job.train.max_train_steps}")
        layout = PipelineLayout(job, is_main=accelerator.is_main_process)
        loop = Loop(
            job, trainer, accelerator=accelerator, layout=layout, sink=sink, rows=start.rows(job)
        )
        ended = loop.run(start.step, should_stop=should_stop)
        status = "FINISHED" if ended.how == "done" else "KILLED"
        return ended, loop.metrics_table()
    finally:
        sink.close(status=status)
