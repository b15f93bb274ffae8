"""Locks between processes: flocks, which the kernel releases when the last holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Generator
from pathlib import Path

from dreambooth_core.errors import StageError
from dreambooth_core.waiting import wait_until

_POLL_S = 0.2


def _holder(path: Path) -> str:
    """The process that wrote into the lock file last."""
    try:
        return path.read_text().strip() or "an unknown process"
    except OSError:
        return "an unknown process"


@contextlib.contextmanager
def hold(
    path: Path,
    *,
    timeout_s: float,
    on_wait: Callable[[str], None] | None = None,
    inheritable: bool = False,
    owner: str = "",
    shared: bool = False,
) -> Generator[int]:
    """Hold the flock on `path`, alone or `shared` with other sharers; yield its descriptor.

    With `inheritable`, the lock stays until the last child process ends. If the lock is not free,
    this calls `on_wait` once with a description of the holder: its process, and what it gave as
    `owner`. Raises StageError after `timeout_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.set_inheritable(fd, inheritable)
        _acquire(fd, path, timeout_s, on_wait, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        os.ftruncate(fd, 0)
        details = f" ({owner})" if owner else ""
        os.pwrite(fd, f"process {os.getpid()}{details}\n".encode(), 0)
        yield fd
    finally:
        os.close(fd)


def holder_of(path: Path) -> str | None:
    """The process that holds the lock now, or None."""
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _try(fd, fcntl.LOCK_EX) else _holder(path)
    finally:
        os.close(fd)


def _acquire(
    fd: int, path: Path, timeout_s: float, on_wait: Callable[[str], None] | None, mode: int
) -> None:
    if _try(fd, mode):
        return
    if on_wait is not None:
        on_wait(_holder(path))
    if not wait_until(lambda: _try(fd, mode), timeout_s=timeout_s, every_s=_POLL_S):
        raise StageError(
            f"{path.name} is held by {_holder(path)} for longer than {timeout_s:.0f} s",
            hint="wait for that process or stop it, then repeat the command",
        )


def _try(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
