"""Which stages of a subject DVC would run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from dreambooth_core import config
from dreambooth_core.config import SubjectView
from dreambooth_core.errors import DreamBoothError, SettingsError
from dreambooth_core.pipeline import preflight
from dreambooth_core.workspace import STAGES, Workspace
from tasks import photos
from tasks.dvc import Busy, Dvc, Status

_CHANGED_COMMAND = "changed command"
"""DVC's word for a stage whose command alone differs."""


class Staleness:
    """The status of a subject's stages. DVC takes a second to report it, so it is cached."""

    def __init__(self, workspace: Workspace, settings: SubjectView, dvc: Dvc) -> None:
        self._subject, self._dvc = settings.name, dvc
        self.pointer = photos.tracked_pointer(workspace, settings)
        self._status: Status | None = None
        self._has_run = False

    def is_stale(self, stage: str) -> bool:
        """Whether DVC would run the stage. Raises Busy.

        A stage that runs may make later ones stale, so DVC reports again before one is skipped.
        """
        key = self.key(stage)
        if self._status is None or (self._has_run and key not in self._status):
            self._status, self._has_run = self._read(), False
        return key in self._status

    def is_only_renamed(self, stage: str) -> bool:
        """Whether nothing but the command of the stage differs from dvc.lock.

        The command only says how a stage starts, so its outputs are still those of its inputs.
        """
        return (self._status or {}).get(self.key(stage)) == [_CHANGED_COMMAND]

    def are_photos_stale(self) -> bool:
        """Whether the photos differed from their .dvc file when DVC last reported."""
        return self.pointer is not None and self.pointer in (self._status or {})

    def mark_committed(self, stage: str) -> None:
        """Take note that the stage has run and is recorded."""
        if self._status is not None:
            self._status.pop(self.key(stage), None)
        self._has_run = True

    def forget(self) -> None:
        """Drop the cached status: another process has changed it."""
        self._status = None

    def key(self, stage: str) -> str:
        """The name of the stage in DVC."""
        return f"{stage}@{self._subject}"

    def _read(self) -> Status:
        stages = [self.key(stage) for stage in STAGES]
        return self._dvc.status([*stages, self.pointer] if self.pointer else stages)


def stages_ahead(
    workspace: Workspace, settings: SubjectView, *, env: Mapping[str, str]
) -> dict[str, str]:
    """Map each stage to "skip" or "run", without locking the subject.

    Every stage after one that runs counts as "run", although DVC skips it if the earlier output
    comes out unchanged. Raises Busy while another DVC process is at work.
    """
    return all_stages_ahead(workspace, [settings], env=env)[settings.name]


def stages_ahead_of_changes(
    workspace: Workspace, settings: SubjectView, *, env: Mapping[str, str]
) -> dict[str, str]:
    """`stages_ahead` for settings that differ from params.yaml (`run --set`). Raises Busy."""
    ahead = stages_ahead(workspace, settings, env=env)
    return _with_changes(ahead, config.load_view(workspace, settings.name), settings)


def _with_changes(
    ahead: Mapping[str, str], in_file: SubjectView, settings: SubjectView
) -> dict[str, str]:
    """The stages ahead, where the first stage whose settings differ and all later ones run."""
    changed, found = False, dict[str, str]()
    for stage, does in ahead.items():
        changed |= config.settings_of(in_file, stage) != config.settings_of(settings, stage)
        found[stage] = "run" if changed else does
    return found


def all_stages_ahead(
    workspace: Workspace, subjects: Sequence[SubjectView], *, env: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """`stages_ahead` by subject, from one call of DVC. Raises Busy."""
    pointers = {view.name: photos.tracked_pointer(workspace, view) for view in subjects}
    targets = [f"{stage}@{view.name}" for view in subjects for stage in STAGES]
    targets += filter(None, pointers.values())
    # DVC looks at the whole project for each target.
    status = Dvc(workspace, env=env).status(targets if len(subjects) == 1 else ())
    return {name: _ahead(status, name, pointer) for name, pointer in pointers.items()}


def _ahead(status: Status, subject: str, pointer: str | None) -> dict[str, str]:
    runs, ahead = pointer in status, dict[str, str]()
    for stage in STAGES:
        changes = status.get(f"{stage}@{subject}", [])
        runs = runs or any(change != _CHANGED_COMMAND for change in changes)
        ahead[stage] = "run" if runs else "skip"
    return ahead


def refuse_the_impossible(
    workspace: Workspace,
    settings: SubjectView,
    *,
    env: Mapping[str, str],
    on_this_machine: bool = True,
    last: str = STAGES[-1],
) -> None:
    """Raise SettingsError with every setting that a stage ahead, up to `last`, cannot work with.

    The settings may differ from params.yaml (`run --set`). Skipped stages need nothing, neither
    their GPU nor their files. While another DVC process is at work, the stages ahead are unknown,
    and the first stage that runs raises instead.
    """
    _refuse_half_renamed(workspace, settings.name)
    found = preflight.findings(workspace.root, settings, env, on_this_machine=on_this_machine)
    if not found:
        return
    try:
        ahead = stages_ahead(workspace, settings, env=env)
    except Busy:
        return
    except DreamBoothError:  # DVC cannot read what a setting names
        ahead = dict.fromkeys(STAGES, "run")
    ahead = _with_changes(ahead, config.load_view(workspace, settings.name), settings)
    up_to_last = STAGES[: STAGES.index(last) + 1]
    preflight.refuse(found, [stage for stage in up_to_last if ahead[stage] == "run"])


def _refuse_half_renamed(workspace: Workspace, subject: str) -> None:
    """Raise SettingsError if a rename was killed: outputs may be under the new name already."""
    note = workspace.renaming(subject)
    if note.is_file():
        new = json.loads(note.read_bytes())["new"]
        raise SettingsError(
            f"the rename of {subject} to {new} was interrupted",
            hint=f"dreambooth subject rename {subject} {new}",
        )
