"""A step of prefect.yaml that keeps the schedules of a deployment when it is deployed again."""

from __future__ import annotations

import uuid


def keep_schedules(deployment: str) -> dict[str, str]:
    """Give every schedule of `deployment`, such as "retrain-all/nightly", a slug.

    Prefect updates the schedules with the slugs of prefect.yaml and leaves the others alone. But if
    one has no slug, as those of `prefect deployment schedule create`, it replaces all of them.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            return {}
        for schedule in found.schedules:
            if schedule.slug is None:
                client.update_deployment_schedule(
                    found.id, uuid.UUID(str(schedule.id)), slug=f"added-{schedule.id}"
                )
    return {}
