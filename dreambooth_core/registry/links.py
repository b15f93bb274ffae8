"""Addresses of MLflow's pages on a server."""

from __future__ import annotations

from urllib.parse import quote

from dreambooth_core.registry.runs import RunFacts
from dreambooth_core.registry.tracking import Tracking, connect, registry_errors
from dreambooth_core.workspace import Workspace

TRAINING_VIEW = "workflowType=machine_learning"
"""MLflow 3 shows the view of agents without it."""


def server_of(tracking: Tracking, workspace: Workspace) -> str | None:
    """The address of the MLflow server in use, or of that of `dreambooth up`."""
    return tracking.shown if tracking.is_server else workspace.service("mlflow")


def run_page(server: str, run: RunFacts) -> str:
    """The page of a run."""
    return f"{server}/#/experiments/{run.experiment_id}/runs/{run.run_id}?{TRAINING_VIEW}"


def artifact_page(tracking: Tracking, server: str, *, run_id: str, file: str) -> str:
    """The page that shows one artifact of a run."""
    with registry_errors(tracking, doing="looking for a run"):
        experiment = connect(tracking).get_run(run_id).info.experiment_id
    page = f"{server}/#/experiments/{experiment}/runs/{run_id}/artifacts/{quote(file)}"
    return f"{page}?{TRAINING_VIEW}"
