"""The settings and dependencies of a stage, compared before and after it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core import config, files
from dreambooth_core.config import SubjectView
from dreambooth_core.errors import StageError
from dreambooth_core.records import RECORD_NAME
from dreambooth_core.workspace import Workspace

Inputs = Mapping[str, Any]
"""Settings by dotted key, and the digest of each dependency by path."""

_SMALL_BYTES = 64 << 20


def inputs_now(workspace: Workspace, settings: SubjectView, stage: str) -> Inputs:
    """Everything that DVC records a stage to be made from, as it is now."""
    raw = config.read_yaml(workspace.params)
    keys = [key.replace("${key}", settings.name) for key in config.dvc_params(stage)]
    values = {key: _at(raw, key) for key in keys}
    root = workspace.root
    for path in dependencies(workspace, settings, stage):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        values[name] = _digest(path)
    return values


def _at(raw: Any, key: str) -> Any:
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
    return raw


def dependencies(workspace: Workspace, settings: SubjectView, stage: str) -> list[Path]:
    """The paths that dvc.yaml names as dependencies of a subject's stage."""
    entry = config.read_yaml(workspace.root / "dvc.yaml")["stages"][stage]["do"]
    values = {"${key}": settings.name, "${item.instance_dir}": settings.subject.instance_dir}
    found: list[Path] = []
    for template in entry.get("deps", ()):
        path = template
        for name, value in values.items():
            path = path.replace(name, value)
        found.append(workspace.resolve(path))
    return found


def _digest(path: Path) -> str:
    """Outputs are identified by their record, photos by their bytes, weights by size and time."""
    if (path / RECORD_NAME).is_file():
        return files.sha256_file(path / RECORD_NAME)
    if path.is_file():
        return files.sha256_file(path)
    found = sorted(p for p in path.rglob("*") if p.is_file())
    named = {p.relative_to(path).as_posix(): p for p in found}
    if sum(p.stat().st_size for p in found) <= _SMALL_BYTES and not _is_weights(found):
        return files.digest_of({name: files.sha256_file(p) for name, p in named.items()})
    states = {name: p.stat() for name, p in named.items()}
    return files.digest_of([(name, s.st_size, s.st_mtime_ns) for name, s in states.items()])


def _is_weights(found: list[Path]) -> bool:
    return any(p.suffix == ".safetensors" for p in found)


def refuse_drift(stage: str, before: Inputs, now: Inputs) -> None:
    """Raise StageError if inputs changed while a stage ran: dvc.lock would be wrong."""
    before, now = config.flatten(before), config.flatten(now)
    moved = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if not moved:
        return
    changes = ", ".join(
        key if _is_digest(before.get(key)) else f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in moved
    )
    raise StageError(
        f"the inputs of {stage} changed while it ran, so its output is not recorded",
        got=changes,
        hint="run again; the store keeps the work done with the earlier inputs",
    )


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64
