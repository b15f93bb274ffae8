"""The project's events in Prefect, to which automations react."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PHOTOS_CHANGED = "dreambooth.photos.changed"


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
