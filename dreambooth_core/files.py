"""Atomic writes (to a temporary name, fsync, rename); hashes of files and folders."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_ASIDE = ".aside-"
_SETTLING_S = 5.0


def fsync_path(path: Path) -> None:
    """Flush one file or directory to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(root: Path) -> None:
    """Flush every file and directory below `root`, and `root` itself."""
    for folder, _, names in os.walk(root):
        for name in names:
            fsync_path(Path(folder) / name)
        fsync_path(Path(folder))


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """Yield a temporary path in the same folder; on success it is fsynced and renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f"{_ASIDE}{path.name}-", dir=path.parent)
    aside = Path(name)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with _named(path):
            yield aside
            aside.chmod(0o644)
            fsync_path(aside)
        aside.replace(path)
        fsync_path(path.parent)
    finally:
        aside.unlink(missing_ok=True)
        os.close(fd)


@contextlib.contextmanager
def _named(path: Path) -> Generator[None]:
    """Add the path to an error of a write, which names no file: the disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_file(path) as aside:
        aside.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically."""
    write_bytes(path, text.encode())


def canonical_json(value: Any) -> str:
    """Serialize `value` as JSON with sorted keys and no spaces. Raises ValueError on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def pretty_json(value: Any) -> str:
    """Serialize `value` as indented JSON with sorted keys. Raises ValueError on NaN."""
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys (the same value gives the same bytes)."""
    write_text(path, pretty_json(value))


@contextlib.contextmanager
def atomic_dir(
    path: Path, *, during_exchange: AbstractContextManager[object] | None = None
) -> Generator[Path]:
    """Yield a temporary sibling folder; on success it is fsynced and replaces `path`.

    A killed process leaves only a folder named `.aside-*`, which `remove_asides` deletes.
    `during_exchange` (a lock) is entered only to replace `path`.
    """
    with scratch_dir(path.parent, path.name) as aside:
        yield aside
        aside.chmod(0o755)
        fsync_tree(aside)
        with during_exchange or contextlib.nullcontext():
            _replace_dir(aside, path)


@contextlib.contextmanager
def scratch_dir(parent: Path, name: str) -> Generator[Path]:
    """Yield a temporary folder in `parent`, removed at the end.

    The process holds a lock on it, so `remove_abandoned` can tell it from a killed process's.
    """
    parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{_ASIDE}{name}-", dir=parent))
    fd = os.open(aside, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with _named(parent / name):
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(fd)


def _replace_dir(aside: Path, path: Path) -> None:
    """Rename `aside` to `path` after moving an older folder out of the way."""
    if path.exists() or path.is_symlink():
        old = Path(tempfile.mkdtemp(prefix=f"{_ASIDE}old-", dir=path.parent))
        path.rename(old / path.name)
        aside.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        aside.rename(path)
    fsync_path(path.parent)


def remove_asides(folder: Path) -> None:
    """Delete the partial files that a killed process left directly inside `folder`."""
    for entry in folder.glob(f"{_ASIDE}*"):
        _remove(entry)


def remove_abandoned(root: Path, *, levels: int = 4) -> None:
    """Delete the partial files of killed processes in `root` and some levels below it.

    Living processes may be at work in the same folders; the kernel tells them apart by their locks.
    """
    for depth in range(levels + 1):
        for entry in root.glob(f"{'*/' * depth}{_ASIDE}*"):
            if _is_abandoned(entry):
                _remove(entry)


def _is_abandoned(entry: Path) -> bool:
    try:
        if time.time() - entry.lstat().st_mtime < _SETTLING_S:  # created, and not yet locked
            return False
        fd = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def is_aside(name: str) -> bool:
    """Whether `name` is a temporary name: still being written, or left by a kill."""
    return name.startswith(_ASIDE)


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of the content of `path`."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def tree_hashes(root: Path) -> dict[str, str]:
    """sha256 of every file below `root` by its POSIX path relative to `root`, sorted."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and not is_aside(p.name))
    return {p.relative_to(root).as_posix(): sha256_file(p) for p in files}


def digest_of(value: Any) -> str:
    """Hex sha256 of the canonical JSON of `value`; of a tree: `digest_of(tree_hashes(root))`."""
    return sha256_bytes(canonical_json(value).encode())


def mismatches(root: Path, expected: Mapping[str, str]) -> list[str]:
    """Names under `root` that are missing or whose sha256 differs from `expected`."""
    return [
        name
        for name, sha256 in sorted(expected.items())
        if not (root / name).is_file() or sha256_file(root / name) != sha256
    ]


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder, copy-on-write if the file system supports it."""
    shutil.copytree(source, target, copy_function=_copy_file, dirs_exist_ok=True)


_FICLONE = 0x40049409  # Linux ioctl: share the blocks of a file until a write


def _copy_file(source: str, target: str) -> str:
    """Reflink `source` to `target` if the file system supports it, else copy the bytes."""
    with Path(source).open("rb") as src, Path(target).open("wb") as dst:
        try:
            fcntl.ioctl(dst.fileno(), _FICLONE, src.fileno())
        except OSError:
            shutil.copyfileobj(src, dst, _CHUNK)
    return target
