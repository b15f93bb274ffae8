"""The project's events in Prefect, to which automations react."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from dreambooth_core.logs import logger

if TYPE_CHECKING:
    from dreambooth_core.registry.versions import VersionInfo

PHOTOS_CHANGED = "dreambooth.photos.changed"
CHAMPION_CHANGED = "dreambooth.champion.changed"


def emit(event: str, subject: str, payload: Mapping[str, Any]) -> None:
    """Send an event about a subject to the Prefect API; return when the server has it.

    Raises what Prefect's client raises. (Its own `emit_event` sends in the background.)
    """
    from prefect.client.orchestration import get_client  # takes two seconds
    from prefect.events import Event

    resource = {
        "prefect.resource.id": f"dreambooth.subject.{subject}",
        "prefect.resource.name": subject,
    }
    made = Event.model_validate(
        {"event": event, "resource": resource, "payload": {"subject": subject, **payload}}
    )
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[made.model_dump(mode="json")])


def report_champion(
    subject: str,
    info: VersionInfo,
    *,
    previous: int | None,
    how: Literal["comparison", "promote", "rollback"],
    why: str,
) -> None:
    """Send the event of a new champion. If Prefect does not take it, log that: the alias has moved.

    `how` is what decided: the comparison of a run, or a command.
    """
    from httpx import HTTPError  # with Prefect, takes a second
    from prefect.exceptions import PrefectHTTPStatusError

    payload = {
        "model": info.version.name,
        "version": info.version.version,
        "previous": previous,
        "how": how,
        "why": why,
        "scores": dict(info.scores),
    }
    try:
        emit(CHAMPION_CHANGED, subject, payload)
    except (HTTPError, PrefectHTTPStatusError) as error:
        logger.warning("Prefect did not take the event of the new champion: %s", error)
