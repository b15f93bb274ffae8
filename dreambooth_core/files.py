"""Atomic writes (to a temporary name, fsync, rename); hashes of files and folders."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
_ASIDE = ".aside-"


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
    os.close(fd)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)
        fsync_path(aside)
        aside.replace(path)
        fsync_path(path.parent)
    finally:
        aside.unlink(missing_ok=True)


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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys (the same value gives the same bytes)."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_dir(
    path: Path, *, during_exchange: AbstractContextManager[object] | None = None
) -> Generator[Path]:
    """Yield a temporary sibling folder; on success it is fsynced and replaces `path`.

    A killed process leaves only a folder named `.aside-*`, which `remove_asides` deletes.
    `during_exchange` (a lock) is entered only to replace `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{_ASIDE}{path.name}-", dir=path.parent))
    try:
        yield aside
        aside.chmod(0o755)
        fsync_tree(aside)
        with during_exchange or contextlib.nullcontext():
            _replace_dir(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
    import fcntl

    with Path(source).open("rb") as src, Path(target).open("wb") as dst:
        try:
            fcntl.ioctl(dst.fileno(), _FICLONE, src.fileno())
        except OSError:
            shutil.copyfileobj(src, dst, _CHUNK)
    return target
