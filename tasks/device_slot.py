"""The slot of the accelerator: work that needs it waits until no other run uses it.

It is a global concurrency limit of Prefect, which `dreambooth up` creates with one slot. A holder
renews its lease; the slot of a killed one is free again after a minute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from dreambooth_core.logs import logger
from dreambooth_core.workspace import Workspace

LIMIT = "dreambooth-device"

_LEASE_S = 60.0
# One attempt; in between, the main thread receives signals.
_ATTEMPT_S = 5.0


def is_lasting(workspace: Workspace, env: Mapping[str, str]) -> bool:
    """Whether Prefect's server stays after this run: that of `up`, or of PREFECT_API_URL."""
    from prefect.settings import PREFECT_API_URL

    api = PREFECT_API_URL.value()
    return bool(api) and api in (env.get("PREFECT_API_URL"), workspace.service("prefect_api"))


@contextlib.contextmanager
def device_slot(workspace: Workspace, env: Mapping[str, str], *, device: str) -> Iterator[None]:
    """Hold a slot; without a lasting server or its limit, and on the CPU, there is none to hold.

    If the server is gone for a while, the work continues without the slot.
    """
    if device == "cpu" or not is_lasting(workspace, env) or not _is_limited():
        yield
        return
    with contextlib.ExitStack() as held:
        if not _take(held):
            logger.warning("waiting for the accelerator, which another run uses (limit %s)", LIMIT)
            while not _take(held):
                pass
        yield


def create_limit(api_url: str) -> None:
    """Create the limit with one slot, unless it exists."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists

    with SyncPrefectClient(api_url) as client, contextlib.suppress(ObjectAlreadyExists):
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=1))


def _is_limited() -> bool:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(LIMIT).active
        except ObjectNotFound:
            return False


def _take(held: contextlib.ExitStack) -> bool:
    """Try to take a slot that `held` releases; False if none is free."""
    from prefect.concurrency.sync import concurrency

    slot = concurrency(
        LIMIT,
        timeout_seconds=_ATTEMPT_S,
        lease_duration=_LEASE_S,
        raise_on_lease_renewal_failure=False,
    )
    try:
        held.enter_context(slot)
    except TimeoutError:
        return False
    return True
