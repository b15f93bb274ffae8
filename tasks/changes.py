"""Finds the subjects whose photos or settings changed, with one `dvc status` for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE

from dreambooth_core import config
from dreambooth_core.errors import StageError
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace
from tasks import photos
from tasks.dvc import Busy, Dvc, Status

_BUSY_POLL_S = 5.0
_BUSY_TIMEOUT_S = 12 * 3600


@task(name="changed subjects", cache_policy=NO_CACHE, persist_result=False, retries=1)
def changed_subjects(root: Path, env: Mapping[str, str]) -> list[str]:
    """The subjects with changed stages or photos, sorted by name."""
    workspace = Workspace(root)
    settings = config.load_settings(workspace.params)
    dvc = Dvc(workspace, env=env)
    for name in settings.subjects:
        photos.restore(workspace, config.for_subject(settings, name), dvc)
    found = wait_until(lambda: _status(dvc), timeout_s=_BUSY_TIMEOUT_S, every_s=_BUSY_POLL_S)
    changed = found[0] if found else dvc.status()
    return sorted(
        name
        for name, subject in settings.subjects.items()
        if any(
            key.endswith(f"@{name}") or workspace.resolve(key) == _pointer(workspace, subject)
            for key in changed
        )
    )


def _pointer(workspace: Workspace, subject: config.SubjectSettings) -> Path:
    return photos.pointer_of(workspace.resolve(subject.instance_dir))


def _status(dvc: Dvc) -> list[Status]:
    """The status in a list, which stays empty while DVC is busy."""
    try:
        return [dvc.status()]
    except Busy:
        return []


def finish_all(subjects: list[str], runs: list[State[Any]]) -> dict[str, Any]:
    """Summarize the runs. Raises StageError with the names of the failed subjects."""
    failed = {
        subject: state.message or state.name
        for subject, state in zip(subjects, runs, strict=True)
        if not state.is_completed()
    }
    if failed:
        raise StageError(
            f"{len(failed)} of {len(subjects)} subjects failed",
            got="; ".join(f"{subject}: {message}" for subject, message in failed.items()),
            hint="`dreambooth run SUBJECT` repeats one of them with its progress",
        )
    return {"changed": subjects}
