"""The Prefect tasks of a search for better settings, around `dreambooth_core.search`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from dreambooth_core import config, files, locks
from dreambooth_core.config.changes import Changes, changed_overrides
from dreambooth_core.environment import is_installed
from dreambooth_core.errors import SettingsError
from dreambooth_core.logs import log_fields, logger
from dreambooth_core.pipeline import preflight
from dreambooth_core.supervision import stop_event
from dreambooth_core.workspace import STAGES, Workspace
from tasks import photos, ray_cluster, this_run
from tasks.device_slot import device_slot
from tasks.dvc import Dvc
from tasks.progress import StageTime, finished, progress_of, this_flow_run
from tasks.run import log_warnings
from tasks.subject_lock import SubjectLock

if TYPE_CHECKING:
    from dreambooth_core.search.sweep import Sweep

STORAGE = "DREAMBOOTH_SWEEP_STORAGE"
"""Environment variable: the database of the studies. It may hold a password, so it is no parameter
of the flow, which Prefect would save."""

storage: ContextVar[str | None] = ContextVar("storage", default=None)
"""The database that the command line names."""

_LOCK_TIMEOUT_S = 48 * 3600.0
_EDIT_TIMEOUT_S = 60.0


def check_request(trials: int) -> None:
    """Raise SettingsError for an impossible number of trials, or a package that is missing."""
    if not is_installed("optuna"):
        raise SettingsError(
            "`dreambooth sweep` needs Optuna, which is not installed",
            hint='pip install "dreambooth-pipeline[sweep]"',
        )
    if trials < 2:
        raise SettingsError(
            "a search needs at least 2 trials, one of them with the unchanged settings",
            got=str(trials),
        )


def check_params(workspace: Workspace, subject: str, params: Sequence[str]) -> None:
    """Raise SettingsError for candidates that the settings cannot have, with every mistake."""
    from dreambooth_core.search.space import make_space

    make_space(workspace, config.load_view(workspace, subject), params)


@contextlib.contextmanager
def open_sweep(
    subject: str,
    root: Path,
    env: Mapping[str, str],
    *,
    trials: int,
    params: Sequence[str],
    pruner: Literal["median", "none"],
) -> Iterator[Sweep]:
    """Open the search of a subject: check settings and candidates, share its lock."""
    check_request(trials)
    # Optuna, MLflow and torch take seconds to import.
    from dreambooth_core.pipeline.registered import require_store
    from dreambooth_core.search.sweep import Order, Sweep

    workspace = Workspace(root)
    if this_run.left_over(workspace, subject):
        with SubjectLock(workspace, subject):  # a killed `run --set` left its changes
            this_run.take_back(workspace, subject)
    view = config.load_view(workspace, subject)
    preflight.refuse(preflight.findings(root, view, env), STAGES)
    require_store(workspace, env)
    log_warnings(workspace, view)
    files.remove_abandoned(workspace.state)
    uri = storage.get() or env.get(STORAGE) or None
    with stop_event() as stop, _shared_lock(workspace, subject):
        photos.restore(workspace, view, Dvc(workspace, env=env))
        order = Order(trials=trials, params=tuple(params), pruner=pruner, storage=uri)
        yield Sweep(
            workspace,
            view,
            order,
            env=env,
            should_stop=stop.is_set,
            progress=progress_of,
        )


@contextlib.contextmanager
def _shared_lock(workspace: Workspace, subject: str) -> Iterator[None]:
    """Keep runs and `dreambooth clean` away from the subject, but not other workers."""
    path = workspace.subject_lock(subject)
    with locks.hold(path, timeout_s=_LOCK_TIMEOUT_S, shared=True, on_wait=_say_waiting):
        yield


def _say_waiting(holder: str) -> None:
    logger.warning("waiting for %s, which works on the subject", holder)


def run_trials(sweep: Sweep) -> None:
    """Run the trials of the study, on the Ray cluster if there is one."""
    if sweep.has_next():
        with log_fields(**this_flow_run()), ray_cluster.joined(sweep.env) as cluster:
            while cluster is not None and sweep.has_next():
                with _device(sweep):
                    if not cluster.run_trials(sweep, progress_of("trials"), _note):
                        break
    while sweep.has_next():
        run_trial(sweep)


def _note(trial: str, seconds: float) -> None:
    finished(StageTime(trial, seconds, skipped=False))


@task(name="trial", cache_policy=NO_CACHE, persist_result=False, tags=["device"])
def run_trial(sweep: Sweep) -> None:
    """Run the next trial of the study."""
    start = time.monotonic()
    with log_fields(**this_flow_run(), subject=sweep.view.name, stage="trial"), _device(sweep):
        trial = sweep.run_next()
        name = f"trial {trial.number} {trial.state}"
        finished(StageTime(name, time.monotonic() - start, skipped=False))


def _device(sweep: Sweep) -> contextlib.AbstractContextManager[None]:
    return device_slot(sweep.workspace, sweep.env, device=sweep.view.compute.device)


@task(name="decide", cache_policy=NO_CACHE, persist_result=False, tags=["device"])
def decide(sweep: Sweep) -> dict[str, Any]:
    """Score the best trial on fresh seeds, against the unchanged settings."""
    with _device(sweep):
        outcome = sweep.decide()
    overrides = changed_overrides(sweep.view, outcome["changes"])
    return {**outcome, "overrides": config.flow_text(overrides), "applied": None}


def keep_settings(root: Path, subject: str, changes: Changes) -> None:
    """Write settings into the subject's overrides in params.yaml, for good."""
    workspace, keys = Workspace(root), ("subjects", subject, "overrides")
    with locks.hold(workspace.workspace_lock, timeout_s=_EDIT_TIMEOUT_S):
        text = config.read_text(workspace.params)
        overrides = changed_overrides(config.load_view(workspace, subject), changes)
        changed = config.replace_text(text, keys, config.flow_text(overrides))
        files.write_bytes(workspace.params, changed.encode())
