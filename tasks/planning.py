"""What a run of a subject would do: the flow's own question to DVC, without taking the subject."""

from __future__ import annotations

from collections.abc import Mapping

from dreambooth_core.workspace import Workspace
from tasks.guard import ALL_STAGES, Guard


def stages_ahead(workspace: Workspace, subject: str, *, env: Mapping[str, str]) -> dict[str, str]:
    """For each stage "skip" or "run", as the guard would decide now.

    What follows a stage that runs is said to run: DVC skips it after all if the stage's output
    turns out as it was. Raises Busy while another DVC process is at work.
    """
    stale = Guard(workspace, subject, env=env).peek()
    ahead: dict[str, str] = {}
    for stage in ALL_STAGES:
        runs = stage in stale or "run" in ahead.values()
        ahead[stage] = "run" if runs else "skip"
    return ahead
