"""Finds subjects whose photos changed since their last run, for the event that starts a run.

The content decides, not the times of files: DVC's hash of the folder, against the one in dvc.lock.
A folder that is being copied has no settled content: two looks in a row must find the same.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core import config, files, locks
from dreambooth_core.config import RuntimeSettings, Settings, quiet_hours
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.supervision import stop_on_signals
from dreambooth_core.workspace import Workspace
from tasks import events, photos

Say = Callable[[str], None]


@dataclass(frozen=True)
class PhotoChange:
    """New photos of a subject: DVC's hash of their folder."""

    subject: str
    content: str


@dataclass(frozen=True)
class _Look:
    """A folder as one look found it: its files' sizes and times, and the hash of its content."""

    files: tuple[tuple[str, int, int], ...]
    content: str
    is_settled: bool


class PhotoWatch:
    """Looks at the photos of all subjects; remembers, also after a restart, what it announced."""

    def __init__(self, workspace: Workspace, say: Say) -> None:
        self._workspace, self._say = workspace, say
        self._note = workspace.state / "watch" / "announced.json"
        self._announced: dict[str, dict[str, str]] = _read_note(self._note)
        self._looks: dict[str, _Look] = {}
        self._recorded: tuple[tuple[int, int] | None, Mapping[str, str]] = (None, {})
        self._said: dict[str, tuple[PhotoChange, str]] = {}

    def due(self, now: datetime.datetime) -> list[PhotoChange]:
        """The changes that may start a run now. The others wait; none is forgotten.

        Raises SettingsError for a mistake in params.yaml.
        """
        settings = config.load_settings(self._workspace.params)
        if settings.runtime.retrain_every_h is None:
            return []
        found: list[PhotoChange] = []
        for change in self._changes(settings):
            reason = self._reason_to_wait(change, settings.runtime, now)
            if reason is None:
                found.append(change)
            else:
                self._say_once(change, f"photos changed; the run waits: {reason}")
        return found

    def note(self, change: PhotoChange, now: datetime.datetime) -> None:
        """Take note that a change was announced."""
        entry = {"content": change.content, "at": now.isoformat(timespec="seconds")}
        self._announced[change.subject] = entry
        files.write_json(self._note, self._announced)
        self._say_once(change, "photos changed; a run was asked for")

    def _changes(self, settings: Settings) -> list[PhotoChange]:
        recorded = self._photos_of_last_runs()
        changes: list[PhotoChange] = []
        for name, subject in settings.subjects.items():
            look = self._look(name, self._workspace.resolve(subject.instance_dir))
            # A subject without a run has nothing that its photos could differ from.
            if look is None or not look.is_settled or name not in recorded:
                continue
            known = {recorded[name], self._announced.get(name, {}).get("content")}
            if look.content not in known:
                changes.append(PhotoChange(name, look.content))
        return changes

    def _look(self, subject: str, folder: Path) -> _Look | None:
        """The content of a folder now; None if it cannot be read, or holds nothing."""
        before = self._looks.pop(subject, None)
        try:
            now = _files_of(folder)
            if before is not None and before.is_settled and before.files == now:
                look = before
            else:
                content = photos.dvc_md5(folder)
                is_settled = before is not None and before.content == content
                look = _Look(now, content, is_settled)
        except OSError:
            return None
        if not now:
            return None
        self._looks[subject] = look
        return look

    def _photos_of_last_runs(self) -> Mapping[str, str]:
        """The hash of the photos that the last recorded run of each subject was made from."""
        path = self._workspace.root / "dvc.lock"
        try:
            state = (path.stat().st_size, path.stat().st_mtime_ns)
            if state != self._recorded[0]:
                stages: Mapping[str, Any] = config.read_yaml(path)["stages"]
                hashes = {
                    key.removeprefix("validate@"): str(stage["deps"][0]["md5"])
                    for key, stage in stages.items()
                    if key.startswith("validate@")
                }
                self._recorded = state, hashes
        except (OSError, DreamBoothError, KeyError, TypeError):
            return {}  # no run yet, or DVC is writing it: the next look reads it
        return self._recorded[1]

    def _reason_to_wait(
        self, change: PhotoChange, runtime: RuntimeSettings, now: datetime.datetime
    ) -> str | None:
        if runtime.quiet_hours and quiet_hours.parse(runtime.quiet_hours).contains(now):
            return f"quiet hours, {runtime.quiet_hours}"
        last = self._announced.get(change.subject)
        if last is None or runtime.retrain_every_h is None:
            return None
        free = datetime.datetime.fromisoformat(last["at"]) + datetime.timedelta(
            hours=runtime.retrain_every_h
        )
        if now >= free:
            return None
        return f"the last one began less than {runtime.retrain_every_h:g} h ago"

    def _say_once(self, change: PhotoChange, text: str) -> None:
        if self._said.get(change.subject) != (change, text):
            self._said[change.subject] = change, text
            self._say(f"{change.subject}: {text}")


def watch(workspace: Workspace, *, every_s: float, say: Say) -> None:
    """Send an event for each change of photos until Ctrl-C or SIGTERM; one process per workspace.

    An event that Prefect did not take is sent again at the next look.
    """
    from httpx import HTTPError  # takes a second, with Prefect
    from prefect.exceptions import PrefectHTTPStatusError

    watching, complaint = PhotoWatch(workspace, say), ""
    with locks.hold(
        workspace.state / "watch" / "watch.lock",
        timeout_s=float("inf"),
        on_wait=lambda holder: say(f"waiting for {holder}, which watches the photos"),
    ):
        stop = stop_on_signals()
        while not stop.wait(every_s):
            now = datetime.datetime.now(datetime.UTC)  # noqa: TID251 - not in an output
            try:
                for change in watching.due(now):
                    payload = {"photos": change.content, "workspace": str(workspace.root)}
                    events.emit(events.PHOTOS_CHANGED, change.subject, payload)
                    watching.note(change, now)
            except (DreamBoothError, HTTPError, PrefectHTTPStatusError) as error:
                if str(error) != complaint:
                    say(f"the next look tries again: {error}")
                complaint = str(error)


def _files_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return tuple((str(path), state.st_size, state.st_mtime_ns) for path, state in found)


def _read_note(path: Path) -> dict[str, dict[str, str]]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
