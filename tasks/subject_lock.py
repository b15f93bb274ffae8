"""The lock of one subject, which a run lends to other DVC processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Self, TypeVar

from prefect.runtime import flow_run

from dreambooth_core import locks
from dreambooth_core.logs import logger
from dreambooth_core.workspace import Workspace
from tasks.dvc import Busy

T = TypeVar("T")

_TIMEOUT_S = 48 * 3600.0
_BUSY_POLL_S = 2.0


class SubjectLock:
    """Held for a whole run. Child processes inherit it, so it outlives a killed run."""

    def __init__(self, workspace: Workspace, subject: str) -> None:
        self.subject = subject
        self.fd: int | None = None
        self._path = workspace.subject_lock(subject)
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()
        self.fd = None

    def _take(self) -> None:
        def log_holder(holder: str) -> None:
            logger.warning("waiting for %s, which works on %s", holder, self.subject)

        lock = locks.hold(
            self._path,
            timeout_s=_TIMEOUT_S,
            on_wait=log_holder,
            inheritable=True,
            owner=_present_run(),
        )
        self.fd = self._held.enter_context(lock)

    def lend(self, reason: Busy) -> None:
        """Unlock the subject for a moment, so that a DVC process that waits for it can continue.

        Finished work stays in the store, so that process only publishes it.
        """
        logger.info("another DVC process works on %s: letting it finish first", self.subject)
        logger.debug("%s", reason)
        self._held.close()
        time.sleep(_BUSY_POLL_S)
        self._take()

    def retry_while_busy(self, call: Callable[[], T]) -> T:
        """Return the result of `call`. Lend the lock and try again each time it raises Busy."""
        while True:
            try:
                return call()
            except Busy as busy:
                self.lend(busy)


def _present_run() -> str:
    """The flow run of this process and the time, for whoever waits for it."""
    since = f"since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    return f"run {flow_run.name}, {flow_run.id}, {since}" if flow_run.id else since
