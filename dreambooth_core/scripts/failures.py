"""What a disk or its permissions refuse in the middle of a run, in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dreambooth_core.errors import StageError

_OF_SAFETENSORS = re.compile(r"\(os error (\d+)\)")
_FULL = "make room, or keep less: --checkpoints_total_limit, --checkpointing_steps"
_CLOSED = "see to its permissions, or give another folder"
_HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _CLOSED),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "move what is there away"),
}


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turn an error of the operating system into a StageError with the checkpoint to go on from.

    All others are mistakes of the program and stay as they are.
    """
    try:
        yield
    except Exception as error:
        number = _number_of(error)
        if number is None:
            raise
        where = getattr(error, "filename", None) or folder
        raise StageError(
            f"the run cannot go on: {os.strerror(number)}",
            got=str(where),
            hint=f"{_HINTS.get(number, 'check the disk and the path')}; {_way_back(folder)}",
        ) from error


def _number_of(error: Exception) -> int | None:
    """The operating system's number of an error; safetensors gives it in its text."""
    if isinstance(error, OSError):
        return error.errno
    found = _OF_SAFETENSORS.search(str(error))
    is_theirs = type(error).__name__ == "SafetensorError"  # not imported: this is torch-free
    return int(found[1]) if found and is_theirs else None


def _way_back(folder: Path) -> str:
    from dreambooth_core.scripts import resume  # torch, which a run that fails has imported

    newest = resume.written_last(folder)
    if newest is None:
        return "no checkpoint was saved yet"
    return f"--resume_from_checkpoint {newest[0].name} goes on from there"
