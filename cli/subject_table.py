"""The rows of `dreambooth subject list`, from files alone: the registry takes seconds to open."""

from __future__ import annotations

from typing import Any

from cli import subjects
from dreambooth_core import config
from dreambooth_core.data.listing import list_folder
from dreambooth_core.errors import DataError
from dreambooth_core.records import ModelVersion
from dreambooth_core.workspace import Places, Workspace


def rows(workspace: Workspace) -> list[dict[str, Any]]:
    """One row per subject, in the order of params.yaml."""
    settings = config.load_settings(workspace.params)
    return [_row(workspace, name, subject) for name, subject in settings.subjects.items()]


def _row(workspace: Workspace, name: str, subject: config.SubjectSettings) -> dict[str, Any]:
    places = workspace.places(name)
    try:
        photos = len(list_folder(workspace.resolve(subject.instance_dir), subject=name).photos)
    except DataError:
        photos = 0
    is_running = subjects.is_running(workspace, name)
    return {
        "name": name,
        "class_noun": subject.class_noun,
        "identifier": subject.identifier,
        "instance_dir": subject.instance_dir,
        "photos": photos,
        "last_run": "in progress" if is_running else _last_run(places),
    }


def _last_run(places: Places) -> str:
    published = ModelVersion.read_if_there(places.stage_dir("register"))
    if published is None:
        return "unfinished" if places.outputs.is_dir() else "none yet"
    return f"{published.checkpoint} registered"
