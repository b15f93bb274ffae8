"""The MLflow runs of a search: one parent, and the training of every trial nested in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from dreambooth_core import files
from dreambooth_core.registry import runs
from dreambooth_core.registry.runs import RunRef
from dreambooth_core.registry.tracking import Tracking

SWEEP = "dreambooth.sweep"
"""Tag of the runs of a search: the name of its study."""
TRIAL = "dreambooth.trial"
"""Tag of a trial's run: its number in the study."""
_STATUSES = {"complete": "FINISHED", "failed": "FAILED"}
WINNER = "dreambooth.winner"
"""Tag of the run of a search: the number of the winning trial, or none."""
STATE = "dreambooth.trial_state"
"""Tag of a trial's run: complete, pruned or failed."""


def open_sweep(
    tracking: Tracking, *, experiment: str, study: str, params: Mapping[str, Any]
) -> RunRef:
    """Find or create the parent run of a study, running, with its space as params."""
    run = runs.find_or_create_run(
        tracking, experiment=experiment, fingerprint=files.digest_of([SWEEP, study]), name=study
    )
    runs.resume(tracking, run)
    runs.log_tags(tracking, run, {SWEEP: study})
    runs.log_params(tracking, run, params)
    return run


def nest_trial(
    tracking: Tracking,
    parent: RunRef,
    *,
    experiment: str,
    fingerprint: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
) -> RunRef:
    """Find or create the run of a trial's training, nested in the run of the search."""
    run = runs.find_or_create_run(
        tracking, experiment=experiment, fingerprint=fingerprint, name=name
    )
    runs.log_tags(tracking, run, {MLFLOW_PARENT_RUN_ID: parent.run_id, **tags})
    runs.log_params(tracking, run, params)
    return run


def end_trial(tracking: Tracking, run: RunRef, *, state: str, numbers: Mapping[str, float]) -> None:
    """Record how a trial ended, and its numbers."""
    now = get_current_time_millis()
    runs.log_tags(tracking, run, {STATE: state})
    runs.log_metrics(tracking, run, [Metric(key, value, now, 0) for key, value in numbers.items()])
    runs.set_status(tracking, run, _STATUSES.get(state, "KILLED"))


def end_sweep(tracking: Tracking, run: RunRef, *, winner: str) -> None:
    """Record the winning trial and end the run of the search."""
    runs.log_tags(tracking, run, {WINNER: winner})
    runs.set_status(tracking, run, "FINISHED")
