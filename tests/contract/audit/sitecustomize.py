"""Writes every file that a process opens to the log that DREAMBOOTH_AUDIT names."""

import os
import sys

_LOG = os.environ.get("DREAMBOOTH_AUDIT")


def _note(event, arguments):
    if event != "open" or not isinstance(arguments[0], str | bytes):
        return
    path, flags = os.fsdecode(arguments[0]), arguments[2] or 0
    if arguments[1] is None and not os.path.isabs(path):  # noqa: PTH117 - called at every open
        return  # os.open below a folder's descriptor (rmtree): the event does not say which
    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    line = f"{'w' if writes else 'r'} {os.path.abspath(path)}\n"  # noqa: PTH100 - links stay links
    os.write(_LOG_FD, line.encode())


if _LOG:
    _LOG_FD = os.open(_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.addaudithook(_note)
