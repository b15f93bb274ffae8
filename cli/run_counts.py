"""How many flow runs a Prefect server has, by state, as metrics."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterEndTime

_WAITING = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
_ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
_LATE = "Late"
_DAY_S = 24 * 3600


class RunCounts:
    """Counts the flow runs of a server; without an answer, says only that it is down."""

    def __init__(self) -> None:
        self._clients: dict[str, SyncPrefectClient] = {}

    def collect(self, api: str) -> Iterator[Metric]:
        """Whether the server answers, its unfinished runs, and those that ended within a day."""
        from httpx import HTTPError
        from prefect.exceptions import PrefectHTTPStatusError

        text = "1 if the Prefect server answers"
        up = GaugeMetricFamily("dreambooth_prefect_up", text, value=0)
        present = GaugeMetricFamily(
            "dreambooth_flow_runs", "Flow runs that have not ended", labels=["state"]
        )
        ended = GaugeMetricFamily(
            "dreambooth_flow_runs_ended_1d", "Flow runs that ended in 24 hours", labels=["state"]
        )
        with contextlib.suppress(HTTPError, PrefectHTTPStatusError):
            client = self._client(api)
            since = time.time() - _DAY_S
            for state in _WAITING:
                present.add_metric([state.lower()], _count(client, _in_state(state)))
            present.add_metric([_LATE.lower()], _count(client, _late()))
            for state in _ENDED:
                ended.add_metric([state.lower()], _count(client, _in_state(state, since=since)))
            up = GaugeMetricFamily("dreambooth_prefect_up", text, value=1)
        yield from (up, present, ended)

    def _client(self, api: str) -> SyncPrefectClient:
        from prefect.client.orchestration import SyncPrefectClient  # takes two seconds

        if api not in self._clients:
            self._clients[api] = SyncPrefectClient(api)
        return self._clients[api]


def _in_state(state: str, *, since: float | None = None) -> FlowRunFilter:
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    kind = filters.FlowRunFilterStateType(any_=[StateType(state)])
    return filters.FlowRunFilter(
        state=filters.FlowRunFilterState(type=kind),
        end_time=None if since is None else _after(since),
    )


def _after(seconds: float) -> FlowRunFilterEndTime:
    from prefect.client.schemas import filters

    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return filters.FlowRunFilterEndTime.model_validate({"after_": when})


def _late() -> FlowRunFilter:
    from prefect.client.schemas import filters

    name = filters.FlowRunFilterStateName(any_=[_LATE])
    return filters.FlowRunFilter(state=filters.FlowRunFilterState(name=name))


def _count(client: SyncPrefectClient, runs: FlowRunFilter) -> int:
    return client.count_flow_runs(flow_run_filter=runs)
