"""The flow `evaluate-again`: scores registered versions with the present scorers and photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from dreambooth_core import environment
from dreambooth_core.workspace import find_workspace
from flows.train_subject import SubjectName
from tasks.evaluate_again import evaluate_all


@flow(name="evaluate-again", persist_result=False)
def evaluate_again(
    subjects: list[SubjectName] | None = None, workspace: str | None = None
) -> dict[str, Any]:
    """Score old versions with the present suite, scorers and photos; their old scores stay.

    Args:
        subjects: Names of subjects in params.yaml; by default all.
        workspace: Project folder; by default the one that the worker runs in.
    """
    root = find_workspace(Path(workspace or "."))
    return evaluate_all(root, environment.set_defaults(root), subjects)
