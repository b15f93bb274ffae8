"""Drops the checkpoints that were not selected, from the output of the training and DVC's cache."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from dreambooth_core import config, locks
from dreambooth_core.pipeline import dvc_cache, lineage, retention
from dreambooth_core.workspace import Workspace
from tasks.run import SubjectRun

_DEPENDENT = ("evaluate", "confirm", "register", "report")
"""The stages that depend on the output of the training."""

_LOCK_TIMEOUT_S = 300.0
_GIT_TIMEOUT_S = 120.0


def drop_unselected(run: SubjectRun) -> bool:
    """Keep only the selected checkpoint, if `runtime.keep_checkpoints` says so.

    A kill in between leaves a training that DVC calls changed: the next run publishes it again
    from the store.
    """
    context = run.context("train")
    if run.settings().runtime.keep_checkpoints != "selected":
        return False
    retention.remove_replaced(context)
    if not retention.has_unselected(context):
        return False
    root, earlier = run.workspace.root, _training_object(run)
    finished = run.lock.retry_while_busy(lambda: _up_to_date(run))
    retention.keep_selected(context)
    targets = [run.staleness.key(stage) for stage in ("train", *finished)]
    run.lock.retry_while_busy(lambda: run.dvc.commit(*targets))
    run.staleness.forget()
    if earlier is not None and earlier != _training_object(run):
        with locks.hold(run.workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
            _remove_objects(root, earlier)
    return True


def _up_to_date(run: SubjectRun) -> list[str]:
    """The dependent stages that stay up to date: fewer weights change nothing of their work."""
    return [stage for stage in _DEPENDENT if not run.staleness.is_stale(stage)]


def _training_object(run: SubjectRun) -> str | None:
    return lineage.dvc_hashes(run.workspace.root, run.subject).get("train")


def _remove_objects(root: Path, folder: str) -> None:
    """Remove what only `folder` refers to from the project's own cache of DVC.

    A cache that several projects share, and an output that a commit names, stay as they are.
    """
    cache = dvc_cache.folder_of(root)
    if cache is None or not cache.resolve().is_relative_to(root.resolve()):
        return
    if _is_committed(root, folder):
        return
    kept = {md5 for out in _locked_objects(Workspace(root)) for md5 in (out, *_members(cache, out))}
    for md5 in {folder, *_members(cache, folder)} - kept:
        _object(cache, md5).unlink(missing_ok=True)


def _object(cache: Path, md5: str) -> Path:
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def _members(cache: Path, md5: str) -> list[str]:
    """The objects in a folder; none for a file, or if the cache lacks the folder."""
    if not md5.endswith(".dir"):
        return []
    try:
        return [entry["md5"] for entry in json.loads(_object(cache, md5).read_bytes())]
    except OSError:
        return []


def _locked_objects(workspace: Workspace) -> list[str]:
    """Every output that dvc.lock names."""
    stages: dict[str, Any] = config.read_yaml(workspace.root / "dvc.lock")["stages"]
    return [out["md5"] for stage in stages.values() for out in stage.get("outs", ())]


def _is_committed(root: Path, md5: str) -> bool:
    """Whether a commit of git (or an experiment of DVC) names the object in its dvc.lock."""
    command = ["git", "log", "--all", "-1", "--format=%h", "-S", md5, "--", "dvc.lock"]
    try:
        found = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return True
    except (OSError, subprocess.CalledProcessError):  # a project without git
        return False
    return bool(found.stdout.strip())
