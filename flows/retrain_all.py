"""The flow `retrain-all`: runs `train-subject` for every changed subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from dreambooth_core import environment
from dreambooth_core.workspace import find_workspace
from flows.train_subject import train_subject
from tasks.changes import changed_subjects, finish_all


@flow(name="retrain-all", persist_result=False)
def retrain_all(workspace: str | None = None) -> dict[str, Any]:
    """Bring every changed subject up to date, one by one, even if some of them fail.

    Args:
        workspace: Project folder; by default the one that the worker runs in.
    """
    root = find_workspace(Path(workspace or "."))
    found = changed_subjects(root, environment.set_defaults(root))
    runs = [train_subject(subject, str(root), return_state=True) for subject in found.changed]
    return finish_all(found, runs)
