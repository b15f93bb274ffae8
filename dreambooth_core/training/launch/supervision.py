"""`python guard.py PARENT COMMAND...`: run COMMAND, outlive all that it starts, die with PARENT.

Launchers close inherited descriptors in the processes that they start and die before them. So a
lock given to a launch is held by this process, which ends last: it adopts the orphans and waits
for them. Run as a file, so that nothing of the project is imported. Asking for a signal between
fork and exec, as `preexec_fn` does, can dead-lock in a parent with threads; this one has none.
"""

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    """Run the command; the exit code is its own, or 128 and the number of its signal."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != int(argv[0]):
        return 128 + signal.SIGTERM  # the parent died before it could be asked about
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    command = os.fork()
    if command == 0:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        os.execvp(argv[1], argv[1:])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _send_sigterm(command))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    return _wait_for_all(command)


def _send_sigterm(command: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(command, signal.SIGTERM)


def _wait_for_all(command: int) -> int:
    """Reap children, own and adopted, until none is left; returns the command's exit code."""
    code = 0
    while True:
        try:
            ended, status = os.wait()
        except ChildProcessError:
            return code
        if ended == command:
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
