"""The rows of `dreambooth subject list`, from files alone: the registry takes seconds to open."""

from __future__ import annotations

from typing import Any

from cli import subjects
from dreambooth_core import config
from dreambooth_core.data.listing import list_folder
from dreambooth_core.errors import DataError
from dreambooth_core.pipeline.common import VERDICT
from dreambooth_core.records import ModelVersion, Verdict
from dreambooth_core.workspace import Places, Workspace


def rows(workspace: Workspace) -> list[dict[str, Any]]:
    """One row per subject, in the order of params.yaml."""
    settings = config.load_settings(workspace.params)
    return [_row(workspace, name, subject) for name, subject in settings.subjects.items()]


def _row(workspace: Workspace, name: str, subject: config.SubjectSettings) -> dict[str, Any]:
    places = workspace.places(name)
    verdict = Verdict.read_if_there(places.verdict_dir, VERDICT)
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
        "champion": _champion(verdict),
        "last_run": "in progress" if is_running else _last_run(places, verdict),
    }


def _champion(verdict: Verdict | None) -> str | None:
    """The version in use after the last run's comparison."""
    if verdict is None:
        return None
    return verdict.challenger if verdict.promote else verdict.champion


def _last_run(places: Places, verdict: Verdict | None) -> str:
    published = ModelVersion.read_if_there(places.stage_dir("register"))
    if published is None:
        return "unfinished" if places.outputs.is_dir() else "none yet"
    if verdict is None:
        return f"{published.checkpoint} selected, not yet compared"
    end = "promoted" if verdict.promote else "not promoted"
    return f"{verdict.challenger}, {published.checkpoint}: {end}"
