"""Finds the subjects whose photos or settings changed, with one `dvc status` for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE

from dreambooth_core import config
from dreambooth_core.config import SubjectView
from dreambooth_core.errors import DataError, DreamBoothError, StageError
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import STAGES, Workspace
from tasks import photos
from tasks.dvc import Busy, Dvc, Status

_BUSY_POLL_S = 5.0
_BUSY_TIMEOUT_S = 12 * 3600


@dataclass(frozen=True)
class Changes:
    """The changed subjects, and the message of each subject that could not be examined."""

    changed: list[str]
    failed: dict[str, str]


@task(name="changed subjects", cache_policy=NO_CACHE, persist_result=False, retries=1)
def changed_subjects(root: Path, env: Mapping[str, str]) -> Changes:
    """The subjects with changed stages or photos, sorted by name.

    A subject whose photos are missing or unreadable fails alone.
    """
    workspace = Workspace(root)
    settings = config.load_settings(workspace.params)
    dvc = Dvc(workspace, env=env)
    changed: list[str] = []
    failed: dict[str, str] = {}
    whole = _status_of_all(dvc)
    for name in sorted(settings.subjects):
        try:
            view = config.for_subject(settings, name)
            photos.restore(workspace, view, dvc)
            if _is_changed(workspace, view, dvc, whole):
                changed.append(name)
        except DreamBoothError as error:
            failed[name] = str(error)
    return Changes(changed, failed)


def _status_of_all(dvc: Dvc) -> Status | None:
    """One status for all subjects, or None if an entry of one of them cannot be read."""
    try:
        return _patient_status(dvc)
    except Busy:
        raise
    except (DataError, StageError):
        return None


def _is_changed(workspace: Workspace, view: SubjectView, dvc: Dvc, whole: Status | None) -> bool:
    """Whether the subject's stages or photos changed."""
    pointer = photos.tracked_pointer(workspace, view)
    stages = [f"{stage}@{view.name}" for stage in STAGES]
    own = [*stages, pointer] if pointer else stages
    status = _patient_status(dvc, own) if whole is None else whole
    return any(key in status for key in own)


def _patient_status(dvc: Dvc, targets: Sequence[str] = ()) -> Status:
    """The status, as soon as no other DVC process is at work."""
    found = wait_until(
        lambda: _status(dvc, targets), timeout_s=_BUSY_TIMEOUT_S, every_s=_BUSY_POLL_S
    )
    return found[0] if found else dvc.status(targets)


def _status(dvc: Dvc, targets: Sequence[str]) -> list[Status]:
    """The status in a list, which stays empty while DVC is busy."""
    try:
        return [dvc.status(targets)]
    except Busy:
        return []


def finish_all(found: Changes, runs: list[State[Any]]) -> dict[str, Any]:
    """Summarize the runs. Raises StageError with the names of the failed subjects."""
    failed = found.failed | {
        subject: state.message or state.name
        for subject, state in zip(found.changed, runs, strict=True)
        if not state.is_completed()
    }
    if failed:
        raise StageError(
            f"{len(failed)} of {len(found.failed) + len(found.changed)} subjects failed",
            got="; ".join(f"{subject}: {failed[subject]}" for subject in sorted(failed)),
            hint="`dreambooth run SUBJECT` repeats one of them with its progress",
        )
    return {"changed": found.changed}
