"""What reaches the disk, seen by the calls to the operating system; each of them is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreambooth_core import files


class Flushes:
    """The fsyncs and renames below `root`.

    A file is safe if its last bytes are flushed before it gets its name, and its folder after.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.named_too_early: list[str] = []
        """Files and folders that got their name with unflushed bytes or entries."""
        self.named: list[str] = []
        self._root, self._flushed = root, set[tuple[int, int]]()
        self._waiting: dict[int, str] = {}
        fsync = os.fsync

        def noted_fsync(fd: int) -> None:
            fsync(fd)
            self._flushed.add(_content(os.fstat(fd)))
            self._waiting.pop(os.fstat(fd).st_ino, None)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._noted(getattr(os, name)))

    @property
    def lost_names(self) -> list[str]:
        """The renames that a power failure now would undo: the folder is not flushed."""
        return list(self._waiting.values())

    def _noted(self, call):
        def move(source, target, **more) -> None:
            source, target = Path(source), Path(target)
            counts = target.is_relative_to(self._root) and not any(
                map(files.is_aside, target.parts)
            )
            if counts:
                tree = [source, *source.rglob("*")]
                dirty = [path for path in tree if _content(path.stat()) not in self._flushed]
                self.named_too_early += [str(path.relative_to(self._root)) for path in dirty]
            call(source, target, **more)
            if counts:
                self.named.append(str(target.relative_to(self._root)))
                self._waiting[target.parent.stat().st_ino] = self.named[-1]

        return move


def _content(state: os.stat_result) -> tuple[int, int]:
    return state.st_ino, state.st_mtime_ns
