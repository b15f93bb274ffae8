"""The flow `train-subject`: from a subject's photos to its best checkpoint in the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import WithJsonSchema

from dreambooth_core import environment
from dreambooth_core.workspace import find_workspace
from tasks import forms, pipeline
from tasks.run import subject_run

SubjectName = Annotated[str, WithJsonSchema(forms.subject_schema(Path.cwd()))]
# Nullable for Python alone: a choice between an object and null is a closed field in the form.
ChangedSettings = Annotated[dict[str, Any] | None, WithJsonSchema(forms.changes_schema())]


@flow(
    name="train-subject",
    flow_run_name="train-subject {subject}",
    persist_result=False,
    task_runner=pipeline.ROW_RUNNER,
)
def train_subject(
    subject: SubjectName, workspace: str | None = None, changes: ChangedSettings = None
) -> dict[str, Any]:
    """Bring all stages of a subject up to date and compare the result with the champion.

    Args:
        subject: Name of a subject in params.yaml.
        workspace: Project folder; by default the one that the worker runs in.
        changes: Settings for this run only, by key, such as {"train.max_train_steps": 100}.
    """
    root = find_workspace(Path(workspace or "."))
    with subject_run(subject, root, environment.set_defaults(root), changes) as run:
        pipeline.validate(run)
        pipeline.class_images(run)
        pipeline.cache(run)
        pipeline.train(run)
        pipeline.evaluate(run)
        pipeline.select(run)
        pipeline.confirm(run)
        pipeline.drop_unselected(run)
        pipeline.register(run)
        verdict = pipeline.compare(run)
        pipeline.report(run)
        pipeline.record_results(run)
        return pipeline.summarize(run, verdict)
