"""The flow `sweep`: searches better settings of a subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prefect import flow

from dreambooth_core import environment
from dreambooth_core.workspace import find_workspace
from flows.train_subject import SubjectName, train_subject
from tasks.sweep import decide, keep_settings, open_sweep, run_trials


@flow(name="sweep", flow_run_name="sweep {subject}", persist_result=False)
def sweep(
    subject: SubjectName,
    trials: int = 12,
    params: list[str] | None = None,
    pruner: Literal["median", "none"] = "median",
    apply: bool = False,  # noqa: FBT001, FBT002 - a parameter of a deployment
    workspace: str | None = None,
) -> dict[str, Any]:
    """Search settings with which a subject's checkpoint is better than with those of params.yaml.

    Args:
        subject: Name of a subject in params.yaml.
        trials: Number of trials in the study, those of other workers and earlier runs included.
        params: Candidates, such as ["train.learning_rate=1e-5..1e-3"]; the rest keeps its default.
        pruner: median ends a trial that is worse than half of the others at the same step.
        apply: Train and register the winner, then write its settings into params.yaml.
        workspace: Project folder; by default the one that the worker runs in.
    """
    root = find_workspace(Path(workspace or "."))
    env = environment.set_defaults(root)
    with open_sweep(
        subject, root, env, trials=trials, params=params or [], pruner=pruner
    ) as search:
        run_trials(search)
        outcome = decide(search)
    if apply and outcome["winner"] is not None:
        outcome["applied"] = train_subject(subject, str(root), outcome["changes"] or None)
        keep_settings(root, subject, outcome["changes"])
    return outcome
