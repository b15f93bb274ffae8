"""Who watches the progress of a run: the terminal that started it, or the flow run's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar

from dreambooth_core.ports import Progress

logger = logging.getLogger("dreambooth")

_LOG_EVERY_S = 15.0


def logged_progress(stage: str) -> Progress:
    """A Progress that writes a line to the log at most every few seconds, and at the end."""
    last = [float("-inf")]

    def show(done: int, total: int, text: str = "") -> None:
        now = time.monotonic()
        if now - last[0] >= _LOG_EVERY_S or (total and done >= total):
            last[0] = now
            logger.info("%s: %d of %d %s", stage, done, total, text)

    return show


progress_for: ContextVar[Callable[[str], Progress]] = ContextVar(
    "progress_for", default=logged_progress
)
"""Makes the Progress of a stage; the command line puts its own here before it starts a flow."""
