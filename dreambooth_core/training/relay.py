"""Lines of a child process on their way: all to the log, some to whoever watches."""

from __future__ import annotations

import collections
import os
import selectors
import time
from collections.abc import Callable
from typing import IO

from dreambooth_core.ports import Progress
from dreambooth_core.training.progress import parse_progress

OnLine = Callable[[str], None]

_CHUNK = 1 << 16
_TAIL_LINES = 30
_SECONDS_BETWEEN_PROGRESS = 1.0


class Relay:
    """Reads a pipe without blocking on it and passes whole lines on, in the reader's thread."""

    def __init__(self, log: IO[str], *, on_line: OnLine | None, progress: Progress) -> None:
        self._log, self._on_line, self._progress = log, on_line, progress
        self._partial = b""
        self._is_open = True
        self._shown = 0.0
        self._last_lines: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)

    @property
    def tail(self) -> list[str]:
        """The last lines that came."""
        return list(self._last_lines)

    def read(self, pipe: IO[bytes], *, wait_s: float) -> bool:
        """Pass on what comes within `wait_s` seconds; whether anything came."""
        if not self._is_open:
            time.sleep(wait_s)
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            if not selector.select(wait_s):
                return False
        chunk = os.read(pipe.fileno(), _CHUNK)
        self._is_open = bool(chunk)
        *lines, self._partial = (self._partial + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._pass_on(line.decode("utf-8", errors="replace").rstrip())
        return self._is_open

    def drain(self, pipe: IO[bytes]) -> None:
        """Pass on the rest, once all writers are gone."""
        while self.read(pipe, wait_s=0):
            pass
        if self._partial:
            self._pass_on(self._partial.decode("utf-8", errors="replace").rstrip())
            self._partial = b""

    def _pass_on(self, line: str) -> None:
        if not line:
            return
        self._log.write(line + "\n")
        self._log.flush()
        self._last_lines.append(line)
        step = parse_progress(line)
        if step is None:
            if self._on_line is not None:
                self._on_line(line)
            return
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_PROGRESS or step.done == step.total:
            self._shown = now
            self._progress(step.done, step.total, step.text)
