"""Ctrl-C and SIGTERM: a stop signal for work that checks it, elsewhere the end of the process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from dreambooth_core.errors import Stopped
from dreambooth_core.scripts.launcher_env import LauncherEnv

_BEFORE_TRAINING = (
    "stopped before the training began; what is finished is kept: run the command again"
)
_AT_ONCE = (
    "stopped at once, without a save; --resume_from_checkpoint latest continues from the newest "
    "whole checkpoint, if there is one"
)


class Stop:
    """The StopSignal of a script.

    During an import, a download or an upload, which do not check it, a signal ends the process at
    once, because a library's threads may wait for a server for ever. No file is torn: all files
    are renamed into place. A second signal always ends the process. One of several processes
    never exits alone, because that would break the others; the launcher ends them all.
    """

    def __init__(self, launcher: LauncherEnv) -> None:
        self._launcher = launcher
        self._is_requested = self._is_watched = False
        self._num_counted = 0
        self._message = _BEFORE_TRAINING

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self._is_requested

    def install(self) -> None:
        """Install the signal handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def watch(self) -> None:
        """The run checks for a stop from here on."""
        self._is_watched = True

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """The work in this block checks for a stop."""
        self.watch()
        try:
            yield
        finally:
            self._is_watched = False

    def exit_on_stop(self, message: str) -> None:
        """From here on a stop, even an earlier one, ends the process with `message`."""
        self._is_watched, self._message = False, message
        if self._is_requested and not self._is_shared:
            _end(message)

    @property
    def _is_shared(self) -> bool:
        return self._launcher.num_processes > 1

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # A Ctrl-C kills accelerate's launcher, which sends SIGTERM here: not a second request.
        self._num_counted += number == signal.SIGINT or not self._launcher.by_accelerate
        self._is_requested = True
        if self._is_shared:
            return
        if self._num_counted > 1:
            _end(_AT_ONCE)
        elif not self._is_watched:
            _end(self._message)


def _end(message: str) -> None:
    """Exit with the code of a stop. Not by an exception, which other threads would survive."""
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode())  # sys.stderr may be mid-line
    os._exit(Stopped.exit_code)
