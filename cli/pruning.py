"""Prunes the store by age, then by size; never removes an entry in use."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core import config, files, locks
from dreambooth_core.workspace import Workspace

_SHA256 = re.compile(rb"[0-9a-f]{64}")
_DAY_S = 86400.0
_LOCK_TIMEOUT_S = 1.0
_GROUPS = (
    *("class-images/*", "train/*", "validate/*", "upload/*", "models/*"),
    *("evaluate/images/*", "cache/??/*", "app/drafts/*", "app/looks/*"),
)
"""Patterns of the store's entries, each of which a run can make again.

Scores are not included: they are small, and every comparison reads those of the champion.
"""


@dataclass(frozen=True)
class _Entry:
    path: Path
    num_bytes: int
    last_use: float


def prune(workspace: Workspace, *, dry_run: bool) -> dict[str, Any]:
    """Remove store entries by age and size (runtime.keep_store_days, keep_store_gib).

    Entries that a published output came from stay. Raises StageError while a run has locked a
    subject, as any entry may be in use then.
    """
    settings = config.load_settings(workspace.params)
    with contextlib.ExitStack() as held:
        for subject in settings.subjects:
            lock = workspace.subject_lock(subject)
            held.enter_context(locks.hold(lock, timeout_s=_LOCK_TIMEOUT_S))
        if not dry_run:
            files.remove_abandoned(workspace.state)
        entries = sorted(_entries(workspace), key=lambda entry: entry.last_use)
        used = _published_digests(workspace)
        free = [entry for entry in entries if not _is_used(entry.path, used)]
        chosen = _to_remove(
            free,
            oldest=time.time() - settings.runtime.keep_store_days * _DAY_S,
            surplus=sum(e.num_bytes for e in entries) - settings.runtime.keep_store_gib * 2**30,
        )
        if not dry_run:
            for entry in chosen:
                _remove(entry.path)
    removed = [
        {"path": e.path.relative_to(workspace.root).as_posix(), "bytes": e.num_bytes}
        for e in chosen
    ]
    return {"removed": removed, "kept": len(entries) - len(chosen), "dry_run": dry_run}


def _entries(workspace: Workspace) -> Iterator[_Entry]:
    for group in _GROUPS:
        for path in sorted(workspace.state.glob(group)):
            stats = [p.stat() for p in (path, *path.rglob("*")) if not p.is_symlink()]
            size = sum(s.st_size for s in stats)
            yield _Entry(path, size, max(s.st_mtime for s in stats))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _to_remove(free: list[_Entry], *, oldest: float, surplus: float) -> list[_Entry]:
    """From entries sorted by age: all that are too old, and as many as exceed the size."""
    chosen: list[_Entry] = []
    for entry in free:
        if entry.last_use < oldest or surplus > 0:
            chosen.append(entry)
            surplus -= entry.num_bytes
    return chosen


def _published_digests(workspace: Workspace) -> set[str]:
    """Every sha256 in a published record, and those of each row's first image."""
    work = workspace.root / "work"
    named = {
        match.decode()
        for record in work.glob("*/**/*.json")
        for match in _SHA256.findall(record.read_bytes())
    }
    pictures = {files.sha256_file(path) for path in work.glob("*/evaluate/images/*/000.png")}
    return named | pictures


def _is_used(path: Path, used: set[str]) -> bool:
    if path.name.partition(".")[0] in used:
        return True
    first = next(iter(sorted(path.glob("block-00000/*.png"))), None)
    if first is not None and files.sha256_file(first) in used:
        return True
    record = path / "record.json"
    named = _SHA256.findall(record.read_bytes()) if record.is_file() else []
    return any(match.decode() in used for match in named)
