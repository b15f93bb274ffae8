"""Measures the disk space of a workspace: how much, by what, why it is kept, and what frees it."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.pipeline import dvc_cache, retention
from dreambooth_core.records import TrainingRun
from dreambooth_core.workspace import Workspace

_OLD = "`dreambooth clean`, after runtime.keep_store_days or above runtime.keep_store_gib"
_STORE = (
    ("evaluation images", ("evaluate/images",), "new scorers need no new images", _OLD),
    ("scores", ("evaluate/scores",), "every comparison reads them", ""),
    ("class images", ("class-images",), "another training of the class reuses them", _OLD),
    ("latents", ("cache",), "another training with these images reuses them", _OLD),
    ("downloaded versions", ("models",), "`dreambooth generate` loads them", _OLD),
    ("photos in the app", ("app",), "uploads that are no subject yet, and small copies", _OLD),
    ("logs and notes", (".",), "for you to read", ""),
)


@dataclass(frozen=True)
class Usage:
    """One line of the table. `num_bytes` is the space on disk; a hard link counts once."""

    what: str
    num_bytes: int
    why: str
    freed_by: str

    def to_json(self) -> dict[str, Any]:
        """The line as plain JSON."""
        return asdict(self)


class _Meter:
    """Adds up allocated blocks. Each inode counts once, in the first line that has it."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()

    def __call__(self, paths: Iterable[Path]) -> int:
        return sum(self._size(entry) for path in paths for entry in _tree(path))

    def _size(self, path: Path) -> int:
        try:
            stat = path.lstat()
        except FileNotFoundError:  # a run is at work
            return 0
        inode = stat.st_dev, stat.st_ino
        if inode in self._seen:
            return 0
        self._seen.add(inode)
        return stat.st_blocks * 512


def _tree(path: Path) -> Iterator[Path]:
    yield path
    for folder, names, files in os.walk(path):
        for name in (*names, *files):
            yield Path(folder) / name


def usage_of(workspace: Workspace) -> list[Usage]:
    """What the project keeps on disk, without its photos and models; empty lines left out."""
    meter = _Meter()
    lines = [*_outputs(workspace, meter), *_store(workspace, meter), *_elsewhere(workspace, meter)]
    return [line for line in lines if line.num_bytes >= 1024]


def _outputs(workspace: Workspace, meter: _Meter) -> Iterator[Usage]:
    for folder in sorted(workspace.root.glob("work/*")):
        name = folder.name
        yield Usage(
            f"work/{name}",
            meter([folder]),
            "the present outputs, their page, and the pages of all versions",
            "removing a folder of a stage; `dvc checkout` restores it",
        )


def _store(workspace: Workspace, meter: _Meter) -> Iterator[Usage]:
    published = workspace.root.glob("work/*/train")
    used = {run.fingerprint for path in published if (run := TrainingRun.read_if_there(path))}
    for folder in sorted((workspace.state / "train").glob("*")):
        yield _training(folder, meter, is_used=folder.name in used)
    for what, parts, why, freed_by in _STORE:
        size = meter(workspace.state / part for part in parts)
        yield Usage(f".state: {what}", size, why, freed_by)


def _training(folder: Path, meter: _Meter, *, is_used: bool) -> Usage:
    subject = retention.subject_of(folder) or "?"
    what = f".state: training of {subject} ({folder.name[:8]})"
    if is_used:
        why = "choosing another checkpoint, or more steps, needs no new training"
        freed_by = f"the next training of {subject}, with runtime.keep_checkpoints: selected"
    elif TrainingRun.read_if_there(folder / "out") is None:
        why, freed_by = "it has not finished, and resumes with the same settings", _OLD
    else:
        why, freed_by = "a return to its settings needs no new training", _OLD
    return Usage(what, meter([folder]), why, freed_by)


def _elsewhere(workspace: Workspace, meter: _Meter) -> Iterator[Usage]:
    root = workspace.root
    cache = dvc_cache.folder_of(root) or root / ".dvc" / "cache"
    gone = "`dvc gc --workspace --all-commits` removes what no commit names"
    yield Usage("DVC's cache", meter([cache]), "`dvc checkout` restores earlier outputs", gone)
    for name, folder in _local_remotes(root):
        yield Usage(
            f"DVC's remote {name}",
            meter([folder]),
            "`dvc pull` restores outputs",
            f"`dvc gc --workspace --all-commits --cloud --remote {name}`",
        )
    registry = [root / "mlartifacts", root / "mlflow.db"]
    yield Usage(
        "MLflow's versions and runs",
        meter(path for path in registry if path.exists()),
        "every registered version can be served",
        "deleting versions and runs in MLflow, then `mlflow gc`",
    )


def _local_remotes(root: Path) -> Iterator[tuple[str, Path]]:
    """The remotes of .dvc/config that are folders inside the project."""
    parser = configparser.RawConfigParser()
    parser.read([root / ".dvc" / "config", root / ".dvc" / "config.local"])
    for section in parser.sections():  # such as 'remote "local"', with the quotes
        name, url = section.strip("'").partition(" ")[2].strip('"'), parser[section].get("url", "")
        folder = (root / ".dvc" / url).resolve()
        is_inside = folder.is_relative_to(root.resolve()) and folder.is_dir()
        if url and "://" not in url and is_inside:
            yield name, folder
