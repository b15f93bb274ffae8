"""Who watches a run: the terminal that started it, or the flow run's log."""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from dreambooth_core.ports import Progress

logger = logging.getLogger("dreambooth")

_LOG_EVERY_S = 15.0


@dataclass(frozen=True)
class StageTime:
    """How long a stage took, and whether it was up to date, so that nothing ran."""

    stage: str
    seconds: float
    skipped: bool


class Watcher(Protocol):
    """Is told how a run goes on."""

    def progress(self, stage: str) -> Progress:
        """The Progress that a stage reports to."""
        ...

    def finished(self, time: StageTime) -> None:
        """A stage is done."""
        ...


class LogWatcher:
    """Writes a line to the log at most every few seconds per stage, and one at each end."""

    def progress(self, stage: str) -> Progress:
        """A Progress that logs."""
        last = [float("-inf")]

        def show(done: int, total: int, text: str = "") -> None:
            now = time.monotonic()
            if now - last[0] >= _LOG_EVERY_S or (total and done >= total):
                last[0] = now
                logger.info("%s: %d of %d %s", stage, done, total, text)

        return show

    def finished(self, time: StageTime) -> None:
        """Log the time, or that nothing was to do."""
        logger.info("%s: %s", time.stage, spell(time))


def spell(time: StageTime) -> str:
    """A stage's time in words."""
    return "up to date" if time.skipped else f"done in {time.seconds:.1f} s"


watcher: ContextVar[Watcher] = ContextVar("watcher")
"""The present run's watcher; the command line puts its own here before it starts a flow."""


def current() -> Watcher:
    """The present watcher; the log without one."""
    return watcher.get(LogWatcher())
