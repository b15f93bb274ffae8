"""Progress of a training: lines on stdout, metrics to the metric sink, and `metrics.csv`."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dreambooth_core.errors import CorruptRecordError
from dreambooth_core.ports import MetricSink, Progress, Throttle
from dreambooth_core.training.job import TrainJob

_COLUMNS = ("step", "loss", "loss_instance", "loss_class", "learning_rate", "grad_norm")


@dataclass(frozen=True)
class MetricsRow:
    """One update. `loss_class` is None without class images; `grad_norm` is before clipping."""

    step: int
    loss: float
    loss_instance: float
    loss_class: float | None
    learning_rate: float
    grad_norm: float


def to_csv(rows: Sequence[MetricsRow]) -> str:
    """The table as text. Nine digits name every fp32 number, so the same run gives the same text.

    An empty cell stands for None.
    """
    lines = [",".join(_COLUMNS)]
    for row in rows:
        cells = [getattr(row, column) for column in _COLUMNS[1:]]
        lines.append(",".join([str(row.step), *("" if c is None else f"{c:.9g}" for c in cells)]))
    return "\n".join(lines) + "\n"


def from_csv(text: str, *, last_step: int) -> list[MetricsRow]:
    """The rows of steps 1 to `last_step`. Raises CorruptRecordError when one is missing."""
    header, *lines = text.splitlines() or [""]
    rows = [_parse(line) for line in lines[:last_step]]
    if header != ",".join(_COLUMNS) or [r.step for r in rows] != list(range(1, last_step + 1)):
        raise CorruptRecordError(f"the metrics table does not hold steps 1 to {last_step}")
    return rows


def _parse(line: str) -> MetricsRow:
    step, loss, instance, class_, rate, norm = line.split(",")
    return MetricsRow(
        step=int(step),
        loss=float(loss),
        loss_instance=float(instance),
        loss_class=float(class_) if class_ else None,
        learning_rate=float(rate),
        grad_norm=float(norm),
    )


def averages(rows: Sequence[MetricsRow]) -> dict[str, float]:
    """What goes to the metric sink for an interval: mean losses, the last rate and norm."""
    values = {
        "loss": sum(row.loss for row in rows) / len(rows),
        "loss_instance": sum(row.loss_instance for row in rows) / len(rows),
        "learning_rate": rows[-1].learning_rate,
        "grad_norm": rows[-1].grad_norm,
    }
    class_losses = [row.loss_class for row in rows if row.loss_class is not None]
    if class_losses:
        values["loss_class"] = sum(class_losses) / len(class_losses)
    return values


_LINE = re.compile(r"step (\d+)/(\d+) +(.*)")


_SECONDS_BETWEEN_SHOWN_LINES = 0.5
_SECONDS_BETWEEN_LOGGED_LINES = 5.0


class ProgressLine(NamedTuple):
    """A progress line as the parent process parses it."""

    done: int
    total: int
    text: str


def parse_progress(line: str) -> ProgressLine | None:
    """Parse a progress line; return None for any other line."""
    found = _LINE.fullmatch(line.strip())
    return ProgressLine(int(found[1]), int(found[2]), found[3]) if found else None


_LOGGED = re.compile(rf"{_LINE.pattern}$")


def start_line(fingerprint: str) -> str:
    """What the log of a training says at each of its starts."""
    return f"the training {fingerprint} starts"


def read_log(text: str, fingerprint: str) -> list[ProgressLine]:
    """The progress since the last start of a training, from the text of its log."""
    _, found, own = text.rpartition(start_line(fingerprint))
    matches = [_LOGGED.search(line) for line in own.splitlines()] if found else []
    return [ProgressLine(int(m[1]), int(m[2]), m[3]) for m in matches if m]


_TIME_LEFT = re.compile(r"(\d+):(\d\d) left")
_NUMBERS = {
    "loss": re.compile(r"\bloss (\S+)"),
    "learning_rate": re.compile(r"\blr (\S+)"),
    "steps_per_second": re.compile(r"(\S+) steps/s"),
}


def numbers_in(text: str) -> dict[str, float]:
    """The loss, learning rate, steps per second and seconds left that a progress line states."""
    found = {name: pattern.search(text) for name, pattern in _NUMBERS.items()}
    numbers = {name: float(match[1]) for name, match in found.items() if match}
    left = _TIME_LEFT.search(text)
    return {**numbers, "seconds_left": 60.0 * int(left[1]) + int(left[2])} if left else numbers


class ProgressReporter:
    """Reports progress in the main process; does nothing in the others."""

    def __init__(self, job: TrainJob, *, sink: MetricSink, is_main: bool) -> None:
        self._total = job.last_step
        self._log_every = job.log_every_steps
        self._sink, self._is_main = sink, is_main
        self._start = self._reported = 0
        self._began = time.monotonic()
        self._throttle = Throttle(job.seconds_between_lines)

    def begin(self, start: int) -> None:
        """Set the step and the time from which the rate is measured."""
        self._start = self._reported = start
        self._began = time.monotonic()

    def report(self, rows: Sequence[MetricsRow]) -> None:
        """Print the progress, and log the averages of each full interval to the sink."""
        step = rows[-1].step
        now = time.monotonic()
        if not self._is_main:
            return
        rate = (step - self._start) / max(now - self._began, 1e-9)
        if step // self._log_every > self._reported // self._log_every:
            interval = rows[-self._log_every :]
            self._sink.metrics({**averages(interval), "steps_per_second": rate}, step=step)
            self._reported = step
        if self._throttle.is_due() or step == self._total:
            log_line(self._line(rows[-1], rate))

    def _line(self, row: MetricsRow, rate: float) -> str:
        left_s = round((self._total - row.step) / rate)
        return (
            f"step {row.step}/{self._total}  loss {row.loss:.4f}  lr {row.learning_rate:.2e}  "
            f"{rate:.2f} steps/s  {left_s // 60}:{left_s % 60:02d} left"
        )


def seconds_between_lines() -> float:
    """The interval of progress lines on stdout: short in a terminal, longer in a log."""
    return _SECONDS_BETWEEN_SHOWN_LINES if sys.stdout.isatty() else _SECONDS_BETWEEN_LOGGED_LINES


def logged_progress(what: str) -> Progress:
    """A Progress that prints lines such as "cache: 5 of 133", and always the last one."""
    throttle = Throttle(seconds_between_lines())

    def show(done: int, total: int, text: str = "") -> None:
        if throttle.is_due() or done == total:
            log_line(f"{what}: {done} of {total} {text}".rstrip())

    return show


def log_line(line: str) -> None:
    """Print a line for the parent process; ignore errors if the parent has exited."""
    with contextlib.suppress(OSError):
        # A single write, because a save prints from another thread.
        print(f"{line}\n", end="", flush=True)  # noqa: T201 - the way to the parent process
