"""The form of a deployment: which values its parameters may have.

Prefect's pages show the form; the flow itself checks the values, by the same settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth_core import config
from dreambooth_core.config import Settings
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.workspace import Workspace, find_workspace

_OFFERED = (
    *("train.learning_rate", "train.max_train_steps", "train.checkpointing_steps"),
    *("train.train_batch_size", "train.method", "train.init_from", "train.seed"),
    *("prior.num_class_images", "evaluate.images_per_prompt"),
)
"""The settings that the form of a run offers by name."""


def changes_schema() -> dict[str, Any]:
    """The JSON schema of a run's changed settings, from the settings' own declarations.

    The form names a few of them; a run accepts any other setting that a subject can override.
    """
    schema = Settings.model_json_schema()
    return {
        "type": "object",
        "default": {},
        "properties": {key: _field(schema, key) for key in _OFFERED},
        "additionalProperties": True,
    }


def _field(schema: dict[str, Any], key: str) -> dict[str, Any]:
    section, name = key.split(".")
    holder = schema["properties"][section]
    reference = next(
        option["$ref"] for option in (holder, *holder.get("anyOf", ())) if "$ref" in option
    )
    field = schema["$defs"][reference.rpartition("/")[2]]["properties"][name]
    shown = {each: value for each, value in field.items() if each not in ("effect", "default")}
    return {**shown, "title": key}


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
