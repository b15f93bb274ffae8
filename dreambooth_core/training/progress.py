"""What a trainer says while it runs: progress lines on stdout, numbers to the metric sink."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

from dreambooth_core.ports import MetricSink
from dreambooth_core.training import metrics
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.metrics import MetricsRow

_SECONDS_BETWEEN_LINES = 0.5
_LINE = re.compile(r"step (\d+)/(\d+) +(.*)")


class ProgressLine(NamedTuple):
    """A progress line as the parent process reads it."""

    done: int
    total: int
    text: str


def parse_progress(line: str) -> ProgressLine | None:
    """The numbers of a progress line; None for any other line."""
    found = _LINE.fullmatch(line.strip())
    return ProgressLine(int(found[1]), int(found[2]), found[3]) if found else None


class ProgressReporter:
    """Speaks for the main process and is silent on the others."""

    def __init__(self, job: TrainJob, *, sink: MetricSink, is_main: bool) -> None:
        self._total = job.train.max_train_steps
        self._log_every = job.log_every_steps
        self._sink, self._is_main = sink, is_main
        self._start = self._told = 0
        self._began = self._spoke = time.monotonic()

    def begin(self, start: int) -> None:
        """Note the step and the moment from which the rate counts."""
        self._start = self._told = start
        self._began = time.monotonic()
        self._spoke = 0.0

    def tell(self, rows: Sequence[MetricsRow]) -> None:
        """Say how far the run is, and hand each full interval's numbers to the sink."""
        step = rows[-1].step
        now = time.monotonic()
        if not self._is_main:
            return
        rate = (step - self._start) / max(now - self._began, 1e-9)
        if step // self._log_every > self._told // self._log_every:
            interval = rows[-self._log_every :]
            self._sink.metrics({**metrics.averages(interval), "steps_per_second": rate}, step=step)
            self._told = step
        if now - self._spoke >= _SECONDS_BETWEEN_LINES or step == self._total:
            self._spoke = now
            log_line(self._line(rows[-1], rate))

    def _line(self, row: MetricsRow, rate: float) -> str:
        left_s = round((self._total - row.step) / rate)
        return (
            f"step {row.step}/{self._total}  loss {row.loss:.4f}  lr {row.learning_rate:.2e}  "
            f"{rate:.2f} steps/s  {left_s // 60}:{left_s % 60:02d} left"
        )


def log_line(line: str) -> None:
    """Print a line for the parent process; a parent that is gone does not stop the trainer."""
    with contextlib.suppress(OSError):
        # One write, as a save speaks from a thread of its own.
        print(f"{line}\n", end="", flush=True)  # noqa: T201 - the way to the parent process
