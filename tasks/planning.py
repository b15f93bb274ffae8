"""What a run of a subject would do: the flow's own question to DVC, without taking the subject."""

from __future__ import annotations

from collections.abc import Mapping

from dreambooth_core.config import SubjectView
from dreambooth_core.pipeline import preflight
from dreambooth_core.workspace import STAGES, Workspace
from tasks.dvc import Busy
from tasks.stage_guard import Guard


def stages_ahead(workspace: Workspace, subject: str, *, env: Mapping[str, str]) -> dict[str, str]:
    """For each stage "skip" or "run", as the guard would decide now.

    What follows a stage that runs is said to run: DVC skips it after all if the stage's output
    turns out as it was. Raises Busy while another DVC process is at work.
    """
    stale = Guard(workspace, subject, env=env).peek()
    ahead: dict[str, str] = {}
    for stage in STAGES:
        runs = stage in stale or "run" in ahead.values()
        ahead[stage] = "run" if runs else "skip"
    return ahead


def refuse_the_impossible(
    workspace: Workspace, view: SubjectView, *, env: Mapping[str, str]
) -> None:
    """Raise SettingsError with all that this machine cannot train of the settings.

    What is up to date needs no GPU: where there is something to tell, DVC is asked whether
    anything up to the training would run. While another DVC process is at work that is not known,
    and the first stage that runs tells it.
    """
    problem = preflight.problem(workspace.root, view, env)
    if problem is None:
        return
    try:
        ahead = stages_ahead(workspace, view.name, env=env)
    except Busy:
        return
    if any(ahead[stage] == "run" for stage in preflight.TRAINING_STAGES):
        raise problem
