"""Runs a stage only if DVC calls it stale, and records it only if its inputs stayed the same.

DVC decides what is up to date, so flows and `dvc repro` can be mixed freely, even at the same time.
"""

from __future__ import annotations

from collections.abc import Callable

from dreambooth_core import locks
from dreambooth_core.errors import StageError
from tasks.dvc import Busy
from tasks.inputs import Inputs, inputs_now, refuse_drift
from tasks.run import SubjectRun

_COMMIT_TIMEOUT_S = 120.0
_ATTEMPTS = 5


def bring_up_to_date(
    run: SubjectRun,
    stage: str,
    work: Callable[[], object],
    *,
    is_lost: Callable[[], bool] = lambda: False,
) -> bool:
    """Do the stage's `work` if it is stale; return whether it ran. Raises what `work` raises.

    `is_lost` checks for a product that DVC does not track (a registered version, a page).
    """
    for _ in range(_ATTEMPTS):
        is_stale = run.lock.retry_while_busy(lambda: run.staleness.is_stale(stage))
        if is_stale and run.staleness.is_only_renamed(stage):
            run.lock.retry_while_busy(lambda: run.dvc.commit(run.staleness.key(stage)))
            run.staleness.mark_committed(stage)
            is_stale = False
        if not is_stale and not is_lost():
            return False
        before = inputs_now(run.workspace, run.settings(), stage)
        work()
        if _commit(run, stage, before):
            return True
    raise StageError(
        f"{stage} of {run.subject} could not be recorded in {_ATTEMPTS} attempts, because "
        "another DVC process removed its output each time",
        hint=f"stop the other `dvc repro`, then `dreambooth run {run.subject}`",
    )


def _commit(run: SubjectRun, stage: str, before: Inputs) -> bool:
    """Record the stage in dvc.lock; False if another DVC process has interfered."""
    try:
        with locks.hold(run.workspace.workspace_lock, timeout_s=_COMMIT_TIMEOUT_S):
            refuse_drift(stage, before, inputs_now(run.workspace, run.settings(), stage))
            if stage != "report" and not run.places.stage_dir(stage).is_dir():
                run.staleness.forget()
                return False
            run.dvc.commit_unlocked(run.staleness.key(stage))
    except Busy as busy:
        run.staleness.forget()
        run.lock.lend(busy)
        return False
    run.staleness.mark_committed(stage)
    return True


def commit_photos(run: SubjectRun) -> None:
    """Update the photos' .dvc file to the photos that the data gate has checked."""
    pointer = run.staleness.pointer
    if pointer is not None and run.staleness.are_photos_stale():
        run.lock.retry_while_busy(lambda: run.dvc.commit(pointer))
