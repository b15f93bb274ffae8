"""Ctrl-C and SIGTERM: noted where a run looks for a stop, elsewhere the end of the program."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from dreambooth_core.errors import Stopped
from dreambooth_core.scripts.launcher_env import LauncherEnv

_PARTING = "stopped before the training began; what is finished is kept: run the command again"
_AT_ONCE = (
    "stopped at once, without a save; --resume_from_checkpoint latest goes on from the newest "
    "whole checkpoint, if there is one"
)


class Stop:
    """The wish to stop, as a StopSignal.

    Where nobody looks for it (an import, a download, an upload) it ends the process there and then:
    a library's threads may wait for a server for ever. Nothing is torn by that, as all is written
    aside. A second signal always does so. In a run of several processes all are noted: one that
    went alone would take the others along, and its launcher sees to the end.
    """

    def __init__(self, launcher: LauncherEnv) -> None:
        self._launcher = launcher
        self._is_wished = self._is_watched = False
        self._num_counted = 0
        self._parting = _PARTING

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._is_wished

    def install(self) -> None:
        """Receive the signals of this process from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def watch(self) -> None:
        """From here on the run looks for a stop itself."""
        self._is_watched = True

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """The work in here looks for a stop itself."""
        self.watch()
        try:
            yield
        finally:
            self._is_watched = False

    def part_with(self, words: str) -> None:
        """From here on nobody looks: a stop, or one noted before, is the end with these words."""
        self._is_watched, self._parting = False, words
        if self._is_wished and not self._is_shared:
            _end(words)

    @property
    def _is_shared(self) -> bool:
        return self._launcher.num_processes > 1

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        # accelerate's launcher dies of a Ctrl-C, and its death sends SIGTERM here: no second wish.
        self._num_counted += number == signal.SIGINT or not self._launcher.by_accelerate
        self._is_wished = True
        if self._is_shared:
            return
        if self._num_counted > 1:
            _end(_AT_ONCE)
        elif not self._is_watched:
            _end(self._parting)


def _end(words: str) -> None:
    """Say so and end with the exit code of every stop. No exception: threads would outlive it."""
    with contextlib.suppress(OSError):
        os.write(2, f"{words}\n".encode())  # sys.stderr may be in the middle of a line
    os._exit(Stopped.exit_code)
