"""Which stages of a subject DVC would run."""

from __future__ import annotations

from collections.abc import Mapping

from dreambooth_core.config import SubjectView
from dreambooth_core.errors import DreamBoothError
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

    def stale_stages(self) -> set[str]:
        """The stages that are stale now; all of them if the photos have changed. Raises Busy."""
        status = self._read()
        if self.pointer in status:
            return set(STAGES)
        changed = {key for key, changes in status.items() if changes != [_CHANGED_COMMAND]}
        return {stage for stage in STAGES if self.key(stage) in changed}

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
    stale = Staleness(workspace, settings, Dvc(workspace, env=env)).stale_stages()
    ahead: dict[str, str] = {}
    for stage in STAGES:
        runs = stage in stale or "run" in ahead.values()
        ahead[stage] = "run" if runs else "skip"
    return ahead


def refuse_the_impossible(
    workspace: Workspace,
    settings: SubjectView,
    *,
    env: Mapping[str, str],
    on_this_machine: bool = True,
) -> None:
    """Raise SettingsError with every setting that a stage ahead cannot work with.

    Skipped stages need nothing, neither their GPU nor their files. While another DVC process is at
    work, the stages ahead are unknown, and the first stage that runs raises instead.
    """
    found = preflight.findings(workspace.root, settings, env, on_this_machine=on_this_machine)
    if not found:
        return
    try:
        ahead = stages_ahead(workspace, settings, env=env)
    except Busy:
        return
    except DreamBoothError:  # DVC cannot read what a setting names
        ahead = dict.fromkeys(STAGES, "run")
    preflight.refuse(found, [stage for stage, does in ahead.items() if does == "run"])
