"""Says which disk is full, and what a stage was writing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from dreambooth_core.errors import StageError
from dreambooth_core.workspace import Places

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_SIGNS = (*map(os.strerror, sorted(_FULL)), "database or disk is full")
"""What libraries and other processes write about it, of which Python sees only the text."""
_MIB = 2**20
_NO_SPACE = _MIB
"""Free bytes below which a disk counts as full, whatever an error says."""


class DiskFullError(StageError):
    """A stage could not write because a disk is full."""


@contextlib.contextmanager
def full_disk_explained(places: Places, stage: str) -> Iterator[None]:
    """Turn any error about a full disk into one that names the disk and the file."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        full = next((each for each in _causes(error) if _is_about_full_disk(each)), None)
        if full is None:
            raise
        named = getattr(full, "filename", None)
        raise _explained(places, stage, Path(os.fsdecode(named)) if named else None) from None


def full_disk_among(folders: Sequence[Path], stopped: str) -> DiskFullError | None:
    """An error about the first of the folders' disks that is full, for errors of other programs.

    `stopped` says what ended, such as "the run of mug stopped".
    """
    disks = (_mount_point(folder) for folder in folders)
    full = next((disk for disk in disks if shutil.disk_usage(disk).free < _NO_SPACE), None)
    return None if full is None else _error(full, stopped)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_about_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(sign in str(error) for sign in _SIGNS)


def _explained(places: Places, stage: str, written: Path | None) -> DiskFullError:
    what = f" while it wrote {written}" if written else ""
    stopped = f"{stage} of {places.subject} stopped{what}"
    return _error(_mount_point(written or places.store), stopped)


def _error(disk: Path, stopped: str) -> DiskFullError:
    usage = shutil.disk_usage(disk)
    return DiskFullError(
        f"the disk is full: {stopped}",
        got=f"{usage.free / _MIB:,.1f} of {usage.total / _MIB:,.0f} MiB are free on {disk}",
        hint="free space there, for example with `dreambooth clean`, and repeat the command: "
        "finished work is kept",
    )


def _mount_point(path: Path) -> Path:
    return next(
        folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_mount()
    )
