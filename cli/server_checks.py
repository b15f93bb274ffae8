"""What `dreambooth doctor` looks at in Prefect and MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cli import services
from cli.finding import Check, check
from cli.ports import DEFAULT_PORTS, is_free
from cli.server import answers
from cli.stuck_runs import stuck_runs
from dreambooth_core import environment
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.masking import without_secrets
from dreambooth_core.workspace import Workspace

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import WorkPool

    from dreambooth_core.registry.tracking import Tracking

_DEPLOY = "PREFECT_API_URL={api} prefect --no-prompt deploy --all"


def examine(workspace: Workspace, env: Mapping[str, str]) -> Iterator[Check]:
    """Check the servers in use: whether they answer, and whether scheduled runs can start."""
    api = services.api_in_use(workspace, env)
    if api is None:
        yield check("Prefect server", "not running; `dreambooth run` starts its own")
        yield from _ports()
    elif answers(f"{api}/health"):
        yield check("Prefect server", f"{without_secrets(api)} ({_named(api, env)})")
        yield from _prefect(workspace, api)
    else:
        yield check(
            "Prefect server",
            f"{without_secrets(api)} does not answer",
            state="wrong",
            hint="start it (`dreambooth up`), or unset PREFECT_API_URL",
        )
    from dreambooth_core.registry import tracking  # imports MLflow

    try:
        yield check("MLflow", tracking.examine(store(workspace, env)))
    except DreamBoothError as error:
        found = error.what if error.got is None else f"{error.what}: {error.got}"
        yield check("MLflow", found, state="wrong", hint=error.hint or "")


def store(workspace: Workspace, env: Mapping[str, str]) -> Tracking:
    """The MLflow store of a workspace."""
    from dreambooth_core.registry import tracking

    return tracking.resolve_tracking(workspace, uri=env.get("MLFLOW_TRACKING_URI"))


def _named(api: str, env: Mapping[str, str]) -> str:
    """Where the address of the Prefect server comes from."""
    return "from PREFECT_API_URL" if api == env.get("PREFECT_API_URL") else "of `dreambooth up`"


def _ports() -> Iterator[Check]:
    taken = {option: port for option, port in DEFAULT_PORTS.items() if not is_free(port)}
    if taken:
        yield check(
            "ports of `dreambooth up`",
            f"another program has {', '.join(str(port) for port in taken.values())}",
            state="warning",
            hint="stop it, or give `up` others: " + " ".join(f"{option} N" for option in taken),
        )


def _prefect(workspace: Workspace, api: str) -> Iterator[Check]:
    from httpx import HTTPError
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with SyncPrefectClient(api) as client:
            # The processes of a server elsewhere are not to be seen from here.
            if urlsplit(api).hostname in environment.LOOPBACK:
                yield from _stuck(client, is_of_up=api == services.running_api(workspace))
            yield from _deployments(client, without_secrets(api))
    except (HTTPError, PrefectHTTPStatusError) as error:
        found = f"{without_secrets(api)} answers {type(error).__name__}"
        hint = "its log says more: .state/logs/prefect-server.log"
        yield check("Prefect", found, state="wrong", hint=hint)


def _stuck(client: SyncPrefectClient, *, is_of_up: bool) -> Iterator[Check]:
    stuck = stuck_runs(client)
    if stuck:
        found = f"no process works on {', '.join(run.name for run in stuck)}"
        hint = "`dreambooth up` ends them when it starts, and within a minute while it runs"
        if not is_of_up:
            commands = " && ".join(f"prefect flow-run delete {run.id}" for run in stuck)
            hint = f"if they stay so for ten minutes (docs/runbook.md, number 4): {commands}"
        yield check("Prefect runs", found, state="warning", hint=hint)


def _deployments(client: SyncPrefectClient, api: str) -> Iterator[Check]:
    """Why scheduled runs would not start."""
    deployments = client.read_deployments()
    if not deployments:
        yield check(
            "deployments",
            "none, so no schedule starts anything",
            state="warning",
            hint=_DEPLOY.format(api=api),
        )
        return
    used = {each.work_pool_name for each in deployments if each.work_pool_name}
    for pool in client.read_work_pools():
        if pool.name in used:
            yield from _pool(pool)
    paused = [each for each in deployments if each.paused or _all_paused(each)]
    for each in paused:
        yield check(
            "schedule",
            f"that of {each.name} is paused, so it starts nothing",
            state="warning",
            hint="if nobody meant that: prefect deployment schedule resume (`schedule ls`: IDs)",
        )


def _all_paused(deployment: Any) -> bool:
    schedules = deployment.schedules
    return bool(schedules) and not any(schedule.active for schedule in schedules)


def _pool(pool: WorkPool) -> Iterator[Check]:
    if pool.is_paused:
        found, hint = "is paused", f"prefect work-pool resume {pool.name}"
    elif pool.status is not None and pool.status.value == "NOT_READY":
        found, hint = "has no worker", f"dreambooth up, or prefect worker start --pool {pool.name}"
    else:
        return
    yield check(
        "work pool", f"{pool.name} {found}: its runs do not start", state="wrong", hint=hint
    )
