"""The look of `dreambooth status`: reads DVC, the registry's aliases and the servers' notes."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.table import Table

from cli import services
from cli.server import answers
from dreambooth_core import config, locks
from dreambooth_core.config import SubjectView
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.masking import without_secrets
from dreambooth_core.pipeline import StageContext
from dreambooth_core.records import RECORD_NAME, Selection
from dreambooth_core.workspace import STAGES, Workspace
from tasks import run_progress, this_run
from tasks.staleness import all_stages_ahead

_SQLITE = "sqlite:///"


def look(workspace: Workspace, env: Mapping[str, str], subject: str | None) -> dict[str, Any]:
    """Everything that `status` shows, as plain JSON. Raises SettingsError, StageError and Busy."""
    views = [config.load_view(workspace, subject)] if subject else config.load_views(workspace)
    with ThreadPoolExecutor() as pool:  # DVC takes a second, and so does importing MLflow
        versions = pool.submit(_versions, workspace, env, views)
        servers = pool.submit(_servers, workspace, env)
        ahead = all_stages_ahead(workspace, views, env=env) if views else {}
        return {
            "subjects": [
                {**_subject(workspace, view, ahead[view.name]), **versions.result()[view.name]}
                for view in views
            ],
            "servers": servers.result(),
        }


def _subject(workspace: Workspace, view: SubjectView, ahead: Mapping[str, str]) -> dict[str, Any]:
    places = workspace.places(view.name)
    finished = {stage: _finished(workspace, view.name, stage) for stage in STAGES}
    selection = Selection.read_if_there(places.stage_dir("select"))
    return {
        "subject": view.name,
        "running": locks.holder_of(workspace.subject_lock(view.name)),
        "progress": _progress(workspace, view.name),
        "last_run": max(filter(None, finished.values()), default=None),
        "stages": {
            stage: {"state": _state(ahead[stage], finished[stage]), "finished": finished[stage]}
            for stage in STAGES
        },
        "would_run": [stage for stage in STAGES if ahead[stage] == "run"],
        "selected": selection.best if selection else None,
        "set_for_one_run": this_run.left_over(workspace, view.name),
    }


def _progress(workspace: Workspace, subject: str) -> str | None:
    """How far the run of a subject is, in words."""
    found = run_progress.read(workspace, subject)
    if found is None:
        return None
    return f"{found.stage}: {found.done} of {found.total} {found.text}".rstrip()


def _state(ahead: str, finished: str | None) -> str:
    if finished is None:
        return "not run yet"
    return "would run again" if ahead == "run" else "up to date"


def _finished(workspace: Workspace, subject: str, stage: str) -> str | None:
    """When the stage last wrote its output (ISO 8601), or None without one."""
    at = finished_at(workspace, subject, stage)
    if at is None:
        return None
    return datetime.datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")


def finished_at(workspace: Workspace, subject: str, stage: str) -> float | None:
    """When the stage last wrote its output, in seconds since 1970, or None without one."""
    name = "index.html" if stage == "report" else RECORD_NAME
    try:
        return (workspace.stage_dir(subject, stage) / name).stat().st_mtime
    except FileNotFoundError:
        return None


def _versions(
    workspace: Workspace, env: Mapping[str, str], views: Sequence[SubjectView]
) -> dict[str, dict[str, Any]]:
    """Champion and challenger by subject; with the reason where the registry cannot be read."""
    uri = env.get("MLFLOW_TRACKING_URI", "")
    nothing = {"champion": None, "challenger": None, "registry": "ok"}
    if uri.startswith(_SQLITE) and not workspace.resolve(uri.removeprefix(_SQLITE)).is_file():
        return {view.name: nothing for view in views}  # a look creates no store
    from dreambooth_core.pipeline import registered

    found: dict[str, dict[str, Any]] = {}
    for view in views:
        context = StageContext(view, workspace.places(view.name), env=env)
        try:
            found[view.name] = {**nothing, **registered.aliases_now(context)}
        except DreamBoothError as error:
            found[view.name] = {**nothing, "registry": str(error)}
    return found


def _servers(workspace: Workspace, env: Mapping[str, str]) -> dict[str, str | None]:
    """The addresses of the servers that answer."""
    prefect = services.api_in_use(workspace, env)
    mlflow = env.get("MLFLOW_TRACKING_URI", "")
    is_up = {
        "prefect": bool(prefect) and answers(f"{prefect}/health"),
        "mlflow": mlflow.startswith("http") and answers(f"{mlflow}/health"),
    }
    urls = {"prefect": prefect or "", "mlflow": mlflow}
    return {name: without_secrets(urls[name]) if is_up[name] else None for name in urls}


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Print the look."""
    for row in found["subjects"]:
        _show_subject(console, row)
    if not found["subjects"]:
        console.print("params.yaml has no subjects: `dreambooth subject add`")
    for name, url in found["servers"].items():
        console.print(f"{name}: {url or 'no server'}")


def _show_subject(console: Console, row: Mapping[str, Any]) -> None:
    table = Table(title=f"{row['subject']} (version in use: {row['champion'] or 'none'})")
    for title in ("stage", "state", "finished"):
        table.add_column(title)
    for stage, told in row["stages"].items():
        table.add_row(stage, told["state"], told["finished"] or "")
    console.print(table)
    for line in _notes(row):
        console.print(line)


def _notes(row: Mapping[str, Any]) -> list[str]:
    name, lines = row["subject"], list[str]()
    if row["selected"]:
        lines.append(f"selected: {row['selected']}, challenger: {row['challenger'] or 'none'}")
    if row["registry"] != "ok":
        lines.append(f"registry: {row['registry']}")
    if row["running"]:
        lines.append(f"{row['running']} works on it now")
        if row["progress"]:
            lines.append(row["progress"])
    elif row["set_for_one_run"]:
        lines.append(
            "params.yaml still holds the settings of a run with --set that was killed; "
            f"`dreambooth run {name}` takes them back"
        )
    if row["would_run"]:
        lines.append(f"to bring it up to date: dreambooth run {name}")
    return lines
