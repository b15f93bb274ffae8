"""The form of a deployment: which values its parameters may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth_core import config
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.workspace import Workspace, find_workspace


def subject_schema(folder: Path) -> dict[str, Any]:
    """The JSON schema of a subject's name, with the subjects of the workspace as choices.

    Prefect keeps the schema of a deployment: deploy again to offer a new subject. The flow itself
    takes any name and checks it against the settings of its workspace.
    """
    schema: dict[str, Any] = {"type": "string"}
    try:
        settings = config.load_settings(Workspace(find_workspace(folder)).params)
    except DreamBoothError:
        return schema  # no workspace to choose from, or settings that the run itself will refuse
    return {**schema, "enum": sorted(settings.subjects)}
