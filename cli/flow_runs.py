"""Prints what the flow runs of a Prefect server are doing, for `dreambooth up`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cli.stuck_runs import end_stuck_runs
from dreambooth_core.errors import StageError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_POLL_S = 2.0
_STUCK_POLL_S = 30.0
_RECENT = 50


class FlowRunLog:
    """A thread that prints one line for each state that a flow run enters, and ends stuck runs.

    Runs that existed before are silent until they change.
    """

    def __init__(self, api_url: str, pool: str, say: Callable[[str], None]) -> None:
        self._api_url, self._pool, self._say = api_url, pool, say
        self._stop = threading.Event()
        self._states: dict[str, str] = {}
        self.is_following = False
        self._thread = threading.Thread(target=self._watch, name="flow-runs", daemon=True)

    def __enter__(self) -> FlowRunLog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        from prefect.client.orchestration import SyncPrefectClient  # takes two seconds

        with SyncPrefectClient(self._api_url) as client:
            self._poll(client, is_first=True)
            self.is_following = True
            looked = time.monotonic()
            while not self._stop.wait(_POLL_S):
                if time.monotonic() - looked > _STUCK_POLL_S:
                    self._end_stuck(client)
                    looked = time.monotonic()
                self._poll(client, is_first=False)

    def _end_stuck(self, client: SyncPrefectClient) -> None:
        from httpx import HTTPError
        from prefect.exceptions import PrefectHTTPStatusError

        try:
            end_stuck_runs(client, pool=self._pool)
        except (HTTPError, PrefectHTTPStatusError):
            return  # like `_poll`
        except StageError as error:
            self._say(str(error))

    def _poll(self, client: SyncPrefectClient, *, is_first: bool) -> None:
        from httpx import HTTPError
        from prefect.client.schemas import filters
        from prefect.client.schemas.objects import StateType
        from prefect.client.schemas.sorting import FlowRunSort
        from prefect.exceptions import PrefectHTTPStatusError

        # A schedule creates its runs for days ahead, and a run has no proper name before it starts.
        started = filters.FlowRunFilterStateType(not_any_=[StateType.SCHEDULED, StateType.PENDING])
        try:
            runs = client.read_flow_runs(
                flow_run_filter=filters.FlowRunFilter(
                    state=filters.FlowRunFilterState(type=started)
                ),
                sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                limit=_RECENT,
            )
        except (HTTPError, PrefectHTTPStatusError):
            return  # the server is busy or stopping; the next poll shows what was missed
        for run in reversed(runs):
            state = run.state_name or "unknown"
            if self._states.get(str(run.id)) == state:
                continue
            self._states[str(run.id)] = state
            if not is_first:
                self._say(f"{run.name}: {_spell(state, run.state.message if run.state else '')}")


def _spell(state: str, message: str | None) -> str:
    words = state.lower()
    return f"{words}. {message.splitlines()[0]}" if message and state in _ENDED_BADLY else words


_ENDED_BADLY = ("Failed", "Crashed")
