"""Ends flow runs that no process works on, and stops those that a process works on.

A killed process cannot report its end: its flow run stays Running and keeps the slot of its
deployment, so Prefect cancels every later run. Both are for a server on this machine alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dreambooth_core.errors import StageError

if TYPE_CHECKING:
    import psutil
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

_RUN_ID = "PREFECT__FLOW_RUN_ID"  # in the environment of a worker's flow process
_API = "PREFECT_API_URL"
_BY_HAND = "by-hand: process "
_STARTING_S = 120.0
_LIMIT = 200


def tags_of_process(pid: int) -> tuple[str, ...]:
    """The tags of a flow run that a command of the user's starts in this process."""
    return ("dreambooth", "by-hand", f"{_BY_HAND}{pid}")


def stop_flows(api_url: str, *, grace_s: float) -> int:
    """Ask the flow processes of a server's workers to stop, and wait; return how many there were.

    Each saves its work and reports its end, so the server has to run until then.
    """
    import psutil  # would delay every command

    found = {process.pid: process for process, _ in _flow_processes(api_url)}
    first = list[psutil.Process]()
    for process in found.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() not in found:
                first.append(process)
                process.terminate()
    psutil.wait_procs(first, timeout=grace_s)
    return len(first)


def end_stuck_runs(client: SyncPrefectClient, *, pool: str) -> list[str]:
    """Mark the stuck runs as crashed, or as cancelled if that was asked; return their names.

    The server frees their concurrency slots. Raises StageError if it refuses.
    """
    from prefect.states import Cancelled, Crashed

    ended: list[str] = []
    for run in stuck_runs(client, pool=pool):
        why = "No process works on this run any more."
        is_cancelling = run.state is not None and run.state.is_cancelling()
        state = Cancelled(message=why) if is_cancelling else Crashed(message=why)
        answer = client.set_flow_run_state(run.id, state)
        if answer.state is None or not answer.state.is_final():
            raise StageError(
                f"Prefect keeps the run {run.name} active, although no process works on it",
                got=str(answer.details),
                hint=f"prefect flow-run delete {run.id}",
            )
        ended.append(run.name)
    return ended


def stuck_runs(client: SyncPrefectClient, *, pool: str | None = None) -> list[FlowRun]:
    """The active runs of the pool (or of any), or of a user's command, that no process works on."""
    active = _active_runs(client)
    working = _working() if active else set[str]()
    suspects = [run for run in active if _is_stuck(client, run, pool, working)]
    # A run may have ended between the two looks; its process reports that before it exits.
    return [run for run in suspects if _state_id(client.read_flow_run(run.id)) == _state_id(run)]


def _active_runs(client: SyncPrefectClient) -> list[FlowRun]:
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    active = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    state = filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=active))
    return client.read_flow_runs(
        flow_run_filter=filters.FlowRunFilter(state=state),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=_LIMIT,
    )


def _is_stuck(client: SyncPrefectClient, run: FlowRun, pool: str | None, working: set[str]) -> bool:
    if run.state is not None and run.state.is_pending() and _age_s(run) < _STARTING_S:
        return False  # a worker may be starting its process
    root = _root(client, run)
    by_hand = next((tag for tag in root.tags if tag.startswith(_BY_HAND)), None)
    if by_hand is not None:
        return not _is_older_process(int(by_hand.removeprefix(_BY_HAND)), run)
    is_of_pool = root.work_pool_name is not None and pool in (None, root.work_pool_name)
    return is_of_pool and str(root.id) not in working


def _root(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """The run in whose process a run works: its outermost parent, or itself."""
    while run.parent_task_run_id is not None:
        parent = client.read_task_run(run.parent_task_run_id).flow_run_id
        if parent is None:
            return run
        run = client.read_flow_run(parent)
    return run


def _working() -> set[str]:
    """The runs that processes of this machine work on."""
    return {run_id for _, run_id in _flow_processes()}


def _flow_processes(api_url: str | None = None) -> Iterator[tuple[psutil.Process, str]]:
    """Processes with the ID of a flow run in their environment, of all servers or of one."""
    import psutil

    for process in psutil.process_iter():
        try:
            variables = process.environ()
        except (psutil.Error, OSError):
            continue
        run_id = variables.get(_RUN_ID)
        if run_id and process.is_running() and api_url in (None, variables.get(_API)):
            yield process, run_id


def _is_older_process(pid: int, run: FlowRun) -> bool:
    """Whether the process lives and is the one that started the run, not a later one."""
    import psutil

    try:
        return run.created is None or psutil.Process(pid).create_time() < run.created.timestamp()
    except psutil.Error:
        return False


def _age_s(run: FlowRun) -> float:
    return time.time() - run.state.timestamp.timestamp() if run.state else _STARTING_S


def _state_id(run: FlowRun) -> object:
    return run.state.id if run.state else None
