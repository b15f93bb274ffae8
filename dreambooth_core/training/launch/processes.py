"""Processes that must not outlive their parent, and how to be sure that none is left."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO

import psutil

from dreambooth_core.training.launch import supervision

TOKEN = "DREAMBOOTH_TRAINER"
"""Variable that marks every process of one launch: launchers start ranks in sessions of their
own, so a process group is not enough to find them."""

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05
_KILL_S = 10.0


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to send this process `number` when the thread that started it is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def survivors(token: str) -> list[psutil.Process]:
    """The living processes that carry `token` (zombies are dead, they only await their parent)."""
    return [process for process in psutil.process_iter() if _carries(process, token)]


def _carries(process: psutil.Process, token: str) -> bool:
    try:
        environ: Mapping[str, str] = process.environ()
        return environ.get(TOKEN) == token and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Launch:
    """A started process and all that it started, found by their token."""

    def __init__(self, process: subprocess.Popen[bytes], token: str) -> None:
        assert process.stdout is not None, "a launch is followed through its standard output"
        self._process, self._token = process, token
        self.stdout: IO[bytes] = process.stdout

    @property
    def exit_code(self) -> int:
        """That of the started process, which has ended; negative for a signal."""
        return self._process.wait()

    def is_alive(self) -> bool:
        """Whether any process of the launch lives."""
        return self._process.poll() is None or bool(survivors(self._token))

    def signal_all(self, number: signal.Signals) -> None:
        """Send `number` to every living process of the launch; last to the one with the lock."""
        for process in survivors(self._token):
            with suppress(psutil.Error):
                process.send_signal(number)
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill_all(self) -> None:
        """SIGKILL every process of the launch and wait for their end."""
        deadline = time.monotonic() + _KILL_S
        while self.is_alive() and time.monotonic() < deadline:
            self.signal_all(signal.SIGKILL)
            time.sleep(_POLL_S)

    def end(self, *, grace_s: float, is_done: Callable[[], bool] = lambda: False) -> None:
        """Leave no process: SIGTERM, `grace_s` seconds to save, SIGKILL; at once when `is_done`.

        An exception that comes while waiting (a second Ctrl-C) goes straight to the kill.
        """
        try:
            if self.is_alive():
                self.signal_all(signal.SIGTERM)
                deadline = time.monotonic() + grace_s
                while self.is_alive() and time.monotonic() < deadline and not is_done():
                    time.sleep(_POLL_S)
        finally:
            self.kill_all()
            self.stdout.close()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def guarded(command: list[str], *, variables: Mapping[str, str]) -> list[str]:
    """The command that runs `command` with further variables and ends with this process.

    It ends after everything that `command` has started, and holds what it inherits until then.
    """
    assignments = [f"{name}={value}" for name, value in variables.items()]
    head = [sys.executable, "-I", "-S", supervision.__file__, str(os.getpid())]
    return [*head, "env", *assignments, *command]
