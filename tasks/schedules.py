"""Steps of prefect.yaml that keep what a user changed when a deployment is deployed again."""

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


def keep_automation(name: str) -> dict[str, bool]:
    """Whether an automation is enabled, for the `enabled` of a trigger. A new one is.

    Prefect replaces the automations of a deployment, so one that a user paused would work again.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.read_automations_by_name(name)
    return {"enabled": all(automation.enabled for automation in found)}
