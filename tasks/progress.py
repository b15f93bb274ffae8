"""Reports the progress of a run: to the log, and to the terminal that started it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from dreambooth_core.logs import logger
from dreambooth_core.ports import Progress, Throttle

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


reporter: ContextVar[Reporter | None] = ContextVar("reporter")
"""Shows the current run as well; the command line sets its own before it starts a flow."""


def is_logged() -> bool:
    """Whether only the log shows the run; the command line shows what it knows by itself."""
    return reporter.get(None) is None


def this_flow_run() -> dict[str, str]:
    """The id of the present flow run as a field of the log; nothing outside of a flow."""
    from prefect.runtime import flow_run  # takes seconds

    return {"run": flow_run.id} if flow_run.id else {}


def _reporters() -> list[Reporter]:
    """The log, and what the command line shows."""
    given = reporter.get(None)
    return [_LOG] if given is None else [_LOG, given]


def progress_of(stage: str, *others: Progress) -> Progress:
    """The Progress of a stage of the current run, which also tells `others`."""
    every = [*(each.progress(stage) for each in _reporters()), *others]

    def show(done: int, total: int, text: str = "") -> None:
        for each in every:
            each(done, total, text)

    return show


def finished(time: StageTime) -> None:
    """Report the end of a stage of the current run."""
    for each in _reporters():
        each.finished(time)
