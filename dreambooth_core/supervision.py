"""Child processes that end with their parent, process groups, and signals as events.

`supervised` runs this file as a program, without site-packages: it starts in milliseconds and has
no threads. So the file imports only the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_EXEC, _ADOPT = "exec", "adopt"


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent's thread ends (Linux only).

    The request survives `exec`, but not `fork`.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl") and libc.prctl(option, int(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def supervised(
    command: Sequence[str], *, adopt: bool = False, variables: Mapping[str, str] | None = None
) -> list[str]:
    """Return a command that runs `command` with more environment variables and dies with us.

    With `adopt`, a supervisor process stays in between. It passes SIGTERM and SIGINT on as SIGTERM,
    adopts all orphans of `command` and ends after the last of them, so a lock that it inherits
    stays locked until then. Launchers close inherited descriptors and may die before their workers.
    """
    assignments = [f"{name}={value}" for name, value in (variables or {}).items()]
    program = [sys.executable, "-I", "-S", __file__, _ADOPT if adopt else _EXEC, str(os.getpid())]
    return [*program, *(["env", *assignments] if assignments else ()), *command]


def start_logged(
    command: Sequence[str], log: Path, *, env: Mapping[str, str], folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command that dies with us, in a new session; its output goes to the end of `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        return subprocess.Popen(
            supervised(command),
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )


def stop_group(process: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """Send SIGTERM to the process group that `process` leads, then SIGKILL to what is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Find a free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set from now on, instead of ending the process."""
    event = threading.Event()

    def receive(_number: int, _frame: FrameType | None) -> None:
        event.set()

    for number in STOP_SIGNALS:
        signal.signal(number, receive)
    return event


@contextlib.contextmanager
def stop_event() -> Generator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set before the present handlers run.

    The event reaches worker threads; an exception of a handler reaches only the main thread.
    Ignored signals stay ignored. Outside the main thread, Python delivers no signals.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handlers = {
        number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN
    }

    def receive(number: int, frame: FrameType | None) -> None:
        event.set()
        handler = handlers[signal.Signals(number)]
        if not callable(handler):
            raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")
        handler(number, frame)

    for number in handlers:
        signal.signal(number, receive)
    try:
        yield event
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# ---- The program ---------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Run a command that dies with the process `parent`; return its exit code.

    The code is 128 plus the signal's number if a signal ended the command. `preexec_fn` could do
    the same between fork and exec, but can deadlock in a parent with threads.
    """
    mode, parent, *command = argv
    die_with_parent()
    if os.getppid() != int(parent):
        return 128 + signal.SIGTERM  # the parent died before the request
    if mode == _EXEC:
        os.execvp(command[0], command)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    child = os.fork()
    if child == 0:
        die_with_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        os.execvp(command[0], command)

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return _wait_for_all(child)


def _wait_for_all(child: int) -> int:
    """Reap all children, own and adopted; return the exit code of `child`."""
    code = 0
    while True:
        try:
            ended, status = os.wait()
        except ChildProcessError:
            return code
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
