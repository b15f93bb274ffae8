"""The flow `run-stages`: the stages of a subject up to one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from dreambooth_core import environment
from dreambooth_core.workspace import find_workspace
from tasks import pipeline
from tasks.run import subject_run


@flow(
    name="run-stages",
    flow_run_name="{last} of {subject}",
    persist_result=False,
    task_runner=pipeline.ROW_RUNNER,
)
def run_stages(
    subject: str, last: str, workspace: str | None = None, changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Bring the stage `last` of a subject up to date, and every stage before it.

    `changes` are settings for this run only, such as {"train.max_train_steps": 100}.
    """
    root = find_workspace(Path(workspace or "."))
    with subject_run(subject, root, environment.set_defaults(root), changes, last=last) as run:
        pipeline.run_up_to(run, last)
        return pipeline.summarize_stages(run)
