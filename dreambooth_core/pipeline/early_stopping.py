"""Scores checkpoints during the training, and ends it once further steps gain nothing.

The decision depends on scores alone, never on which process was faster: the training may run past
the deciding checkpoint, and its output leaves out everything after that.
"""

from __future__ import annotations

import contextvars
import dataclasses
import threading
from collections.abc import Callable
from typing import Self

from dreambooth_core.errors import Stopped
from dreambooth_core.evaluation import selection
from dreambooth_core.logs import log_fields, logger
from dreambooth_core.pipeline import evaluate, live_scores
from dreambooth_core.pipeline.common import StageContext
from dreambooth_core.ports import StopSignal, no_progress
from dreambooth_core.records import REAL, RECORD_NAME, SCORES, STEP_0, CheckpointScore
from dreambooth_core.training.checkpoints import published
from dreambooth_core.training.checkpoints.resume_state import find_start
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.launch.launcher import TrainingOutcome

_POLL_S = 0.5


class Judge:
    """Scores the checkpoints of a training in order of steps, and decides when it ends."""

    def __init__(self, context: StageContext, job: TrainJob, *, patience: int) -> None:
        # The training shows its progress in the same place.
        self._context = dataclasses.replace(context, progress=no_progress, shares_cores=True)
        self._job, self._patience = job, patience
        self._steps = job.published_steps()
        self._rows: list[CheckpointScore] = []
        self._damaged: tuple[int, int] | None = None
        self._limits: selection.Limits | None = None
        self.last_step: int | None = None
        """The step at which the training ends, once that is decided."""

    def has_next(self) -> bool:
        """Whether the next checkpoint is there to be scored; a damaged one must be replaced."""
        return self._next_written() is not None

    def _next_written(self) -> tuple[int, int] | None:
        """The time and inode of the next checkpoint's record; None without one to be scored."""
        if self.last_step is not None or len(self._rows) == len(self._steps):
            return None
        name = published.checkpoint_name(self._steps[len(self._rows)])
        try:
            status = (self._job.checkpoints_dir / name / RECORD_NAME).stat()
        except FileNotFoundError:
            return None
        written = status.st_mtime_ns, status.st_ino
        return None if written == self._damaged else written

    def score_all(self) -> None:
        """Score every checkpoint that is there."""
        while self.score_next():
            pass

    def score_next(self) -> bool:
        """Score the next checkpoint and decide; False if none is there or all is decided.

        Raises Stopped between sampling blocks.
        """
        written = self._next_written()
        if written is None:
            return False
        folder = self._job.checkpoints_dir
        checkpoint = published.read_checkpoint(folder, step=self._steps[len(self._rows)])
        if checkpoint is None:  # the trainer writes it again
            self._damaged = written
            return False
        self._limits = self._limits or self._score_references()
        row = evaluate.score_checkpoint(
            self._context, checkpoint, find=lambda: folder / checkpoint.name, rounds=1
        )
        self._note(row)
        self._rows.append(row)
        with log_fields(step=str(checkpoint.step)):
            logger.info("%s", _line(row))
        if selection.further_steps_are_futile(self._rows, self._limits, patience=self._patience):
            self.last_step = checkpoint.step
            logger.info("the training ends at step %d: further steps gain nothing", self.last_step)
        self._context.on_score(row, self._limits)
        return True

    def _score_references(self) -> selection.Limits:
        base, real = (evaluate.score_row(self._context, name) for name in (STEP_0, REAL))
        self._note(base)
        return evaluate.limits_from(self._context, base, real)

    def _note(self, row: CheckpointScore) -> None:
        """Let whoever watches the training see the row."""
        resident = evaluate.open_resident(self._context)
        live_scores.write(
            self._job.state_dir,
            row,
            resident.images(row).suite,
            prompts=resident.evaluators["evaluate"].plan.prompts,
            root=self._context.places.root,
        )


def train_until_decided(
    context: StageContext,
    job: TrainJob,
    *,
    patience: int,
    launch: Callable[[TrainJob, StopSignal], TrainingOutcome],
    pauses_training: bool,
) -> TrainJob:
    """Train and score until the end is decided or reached; returns the job with its last step.

    Scoring and training run at the same time, or, with `pauses_training`, in turn: the training
    stops with a saved state and resumes exactly. Raises Stopped.
    """
    judge = Judge(context, job, patience=patience)
    judge.score_all()
    ended = False
    while judge.last_step is None and not ended:
        with _Scoring(judge, pauses_training=pauses_training) as scoring:
            outcome = launch(job, lambda: context.should_stop() or scoring.needs_stop())
        if context.should_stop():
            raise Stopped("the training was stopped", hint="run it again to continue")
        judge.score_all()
        ended = outcome.how == "done"
    return _ending_at(job, judge.last_step)


def must_pause(context: StageContext) -> bool:
    """Whether scoring needs the memory of the device that the training fills: on a GPU."""
    return evaluate.open_resident(context).device.type != "cpu"


def _ending_at(job: TrainJob, step: int | None) -> TrainJob:
    """The job that ends at `step`, with its output if all of that is in the store."""
    if step is None:
        return job
    job = job.model_copy(update={"ends_at": step})
    table = find_start(job).finished_table
    if table is not None and published.finished_run(job) is None:
        published.assemble(job, metrics=table)
    return job


class _Scoring:
    """Scores in a thread while the training runs, or asks the training to pause for it."""

    def __init__(self, judge: Judge, *, pauses_training: bool) -> None:
        self._judge, self._pauses_training = judge, pauses_training
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            # Its lines of the log name the same run.
            target=contextvars.copy_context().run,
            args=(self._work,),
            name="judge",
            daemon=True,
        )

    def _work(self) -> None:
        try:
            while not self._ended.is_set():
                if not self._judge.score_next():
                    self._ended.wait(_POLL_S)
        except BaseException as error:
            self._error = error

    def needs_stop(self) -> bool:
        """Whether the training must stop: it may be at its end, or must wait for scores."""
        if self._pauses_training:
            return self._judge.has_next()
        return self._judge.last_step is not None or self._error is not None

    def __enter__(self) -> Self:
        if not self._pauses_training:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if not self._pauses_training:
            self._thread.join()
        if self._error is not None and not isinstance(self._error, Stopped):
            raise self._error


def _line(row: CheckpointScore) -> str:
    values = [f"{SCORES[name]} {mean:.3f}" for name, mean in row.means().items()]
    return f"{row.name}, {row.n} images: {', '.join(values)}"
