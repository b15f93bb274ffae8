"""`python guard.py PARENT COMMAND...`: become COMMAND, which the kernel ends when PARENT dies.

Run as a file, so that nothing of the project is imported. A wish set between fork and exec, as
`preexec_fn` would do, can dead-lock in a parent with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Make the wish, check that the parent had not died before it, and become the command."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != int(argv[0]):
        sys.exit("the parent process is gone")
    os.execvp(argv[1], argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
