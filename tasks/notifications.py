"""The automations that tell a webhook about new champions and failed runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast
from uuid import UUID

from dreambooth_core import config
from dreambooth_core.workspace import Workspace

_BLOCK = "dreambooth-webhook"
_STANDS_FOR_ID = "WEBHOOK"


def notify(workspace: Workspace, url: str) -> list[str]:
    """Create the automations, or let present ones call `url`; return their names.

    The address may hold a secret, so it is stored in a block of Prefect's alone, which encrypts it.
    An automation that a user paused stays paused.
    """
    from prefect.blocks.webhook import Webhook
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import AutomationCore

    specs = _specs(workspace.root / "infra" / "automations" / "notify.yaml")
    webhook = Webhook.model_validate({"url": url, "headers": {"Content-Type": "application/json"}})
    saved = webhook.save(_BLOCK, overwrite=True)
    block = cast("UUID", saved)  # not a coroutine, outside of an event loop
    with get_client(sync_client=True) as client:
        for spec in specs:
            made = AutomationCore.model_validate(_filled(spec, block))
            present = client.read_automations_by_name(made.name)
            for automation in present:
                kept = made.model_copy(update={"enabled": automation.enabled})
                client.update_automation(automation.id, kept)
            if not present:
                client.create_automation(made)
    return [str(spec["name"]) for spec in specs]


def _specs(path: Path) -> list[dict[str, Any]]:
    return config.read_yaml(path)["automations"]


def _filled(spec: dict[str, Any], block: UUID) -> dict[str, Any]:
    actions = [
        {**action, "block_document_id": str(block)}
        if action.get("block_document_id") == _STANDS_FOR_ID
        else action
        for action in spec["actions"]
    ]
    return {**spec, "actions": actions}
