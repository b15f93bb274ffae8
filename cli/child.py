"""`python -m cli.child COMMAND`: becomes COMMAND, which gets SIGTERM when its parent is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> None:
    """Ask the kernel for the signal (it outlives exec; Linux only) and become `command`."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)  # it went before we could ask
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
