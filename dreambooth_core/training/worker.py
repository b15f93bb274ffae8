"""The trainer process, which `accelerate launch` starts once per device."""

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
from dreambooth_core.training.checkpoints.resume_state import Start, find_start
from dreambooth_core.training.checkpoints.saving import PipelineLayout
from dreambooth_core.training.distributed import (
    broadcast_from_main,
    make_strategy,
    start_accelerator,
)
from dreambooth_core.training.dry_run import check_disk_for_resume, disk_plan, dry_run
from dreambooth_core.training.job import TrainerExit, TrainJob, write_exit
from dreambooth_core.training.loop import Loop
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.save_request import SaveRequest
from dreambooth_core.training.trainable import load_trainable_model
from dreambooth_core.training.trainer import Trainer

OpenRows = Callable[[TrainJob], RowsAt]
"""Opens the latent cache of a job; called only if there are steps to train."""
OpenSink = Callable[[TrainJob], MetricSink]
"""Opens the metric sink of a job; called only in the main process."""


def main(job_path: Path, *, open_rows: OpenRows, open_sink: OpenSink) -> int:
    """Run the job saved at `job_path`, write its result and return the exit code.

    On SIGTERM, SIGINT or the death of the launcher, the process saves and exits. A failure becomes
    a result for the parent to report.
    """
    stop = stop_on_signals()
    die_with_parent()
    job = TrainJob.load(job_path)
    try:
        ended = work(job, open_rows=open_rows, open_sink=open_sink, should_stop=stop.is_set)
    except DreamBoothError as error:
        ended = TrainerExit(how="failed", step=0, error=str(error), exit_code=error.exit_code)
        log_line(f"error: {error}")
    except Exception as error:
        # Outermost handler of the process: report every error with its traceback.
        with contextlib.suppress(OSError):
            traceback.print_exc()
        ended = TrainerExit(how="failed", step=0, error=_explain(error), exit_code=1)
    if ended.how == "failed" or PartialState().is_main_process:
        write_exit(job.state_dir, ended)
    return ended.exit_code


def _explain(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.OutOfMemoryError):
        text += "; enable train.gradient_checkpointing or lower train.train_batch_size"
    return text


def work(
    job: TrainJob, *, open_rows: OpenRows, open_sink: OpenSink, should_stop: StopSignal
) -> TrainerExit:
    """Train the job from its newest state to its last step, then write its output folder.

    Raises SettingsError if this machine cannot run the settings, and StageError if the run cannot
    continue.
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
        return TrainerExit(how="done", step=job.last_step)
    finally:
        accelerator.end_training()


def _train(
    job: TrainJob,
    accelerator: Accelerator,
    start: Start,
    open_rows: OpenRows,
    open_sink: OpenSink,
    should_stop: StopSignal,
) -> tuple[TrainerExit, str]:
    """Train from `start`; return the result and the metrics table as CSV."""
    sink = open_sink(job) if accelerator.is_main_process else NullSink()
    status = "FAILED"
    try:
        model = load_trainable_model(job, device=accelerator.device)
        strategy = make_strategy(
            model, accelerator=accelerator, settings=job.train, state=start.state(job)
        )
        trainer = Trainer(strategy, rows_at=open_rows(job))
        if job.dry_run and start.record is None:
            dry_run(job, strategy, disk_plan(job), is_main=accelerator.is_main_process)
        if accelerator.is_main_process:
            if start.record is not None:
                check_disk_for_resume(job, model)
            log_line(f"training starts after step {start.step} of {job.last_step}")
        layout = PipelineLayout(job, is_main=accelerator.is_main_process)
        loop = Loop(job, trainer, layout=layout, sink=sink, rows=start.rows(job))
        ended = loop.run(
            start.step, should_stop=should_stop, save_request=SaveRequest(job.save_request)
        )
        status = "FINISHED" if ended.how == "done" else "KILLED"
        return ended, loop.metrics_table()
    finally:
        sink.close(status=status)
