"""Reports the progress of a run: to the log, or to the terminal that started it."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from dreambooth_core.ports import Progress, Throttle

logger = logging.getLogger("dreambooth")

_LOG_EVERY_S = 15.0


@dataclass(frozen=True)
class StageTime:
    """How long a stage took, and whether it was skipped as up to date."""

    stage: str
    seconds: float
    skipped: bool


class Reporter(Protocol):
    """Shows the progress of a run."""

    def progress(self, stage: str) -> Progress:
        """The Progress of a stage."""
        ...

    def finished(self, time: StageTime) -> None:
        """Report the end of a stage."""
        ...


class LogReporter:
    """Logs progress every few seconds, and the end of each stage."""

    def __init__(self) -> None:
        self._throttle = Throttle(_LOG_EVERY_S)

    def progress(self, stage: str) -> Progress:
        """The Progress of a stage, which logs."""

        def show(done: int, total: int, text: str = "") -> None:
            if self._throttle.is_due():
                logger.info("%s: %d of %d %s", stage, done, total, text)

        return show

    def finished(self, time: StageTime) -> None:
        """Log the time, or that the stage was up to date."""
        logger.info("%s: %s", time.stage, spell(time))


_LOG = LogReporter()


def spell(time: StageTime) -> str:
    """A stage's time in words."""
    return "up to date" if time.skipped else f"done in {time.seconds:.1f} s"


reporter: ContextVar[Reporter] = ContextVar("reporter")
"""The reporter of the current run; the command line sets its own before it starts a flow."""


def is_logged() -> bool:
    """Whether the run reports to the log; the command line shows what it knows by itself."""
    return current() is _LOG


def current() -> Reporter:
    """The reporter of the current run; by default the log."""
    return reporter.get(_LOG)
