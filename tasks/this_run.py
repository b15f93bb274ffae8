"""Settings for one run only, as overrides of its subject while the run lasts.

They come from `run --set` or from the form of a deployment. DVC, the stages and the stage guard all
read params.yaml. Changes that stand there are recorded in dvc.lock as the values that were used,
and `dvc status` afterwards says that params.yaml differs.
The caller holds the subject's lock, and a note in the store keeps the original text, so that the
next run of the subject takes back the changes of a killed one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dreambooth_core import config, files, locks
from dreambooth_core.config.changes import Changes, changed_overrides, changed_view
from dreambooth_core.errors import SettingsError
from dreambooth_core.logs import logger
from dreambooth_core.workspace import Workspace

_LOCK_TIMEOUT_S = 60.0
_EXAMPLE = "--set train.max_train_steps=100"


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """The changes that KEY=VALUE texts ask for; a value is YAML. Raises SettingsError."""
    changes: dict[str, Any] = {}
    for text in assignments:
        key, sign, value = text.partition("=")
        if not (key.strip() and sign):
            raise SettingsError("--set takes KEY=VALUE", got=text, hint=_EXAMPLE)
        try:
            changes[key.strip()] = config.parse_yaml(value)
        except SettingsError:
            raise SettingsError(
                f"the value of --set {key} is not valid YAML", got=value, hint=_EXAMPLE
            ) from None
    return changes


@contextlib.contextmanager
def applied(workspace: Workspace, subject: str, changes: Changes) -> Iterator[None]:
    """Put the changes into params.yaml; afterwards restore its text, to the byte.

    First takes back what a killed run has left. Raises SettingsError for a wrong change.
    """
    take_back(workspace, subject)
    if not changes:
        yield
        return
    changed_view(workspace, subject, changes)
    _apply(workspace, subject, changes)
    try:
        yield
    finally:
        take_back(workspace, subject)


def left_over(workspace: Workspace, subject: str) -> bool:
    """Whether params.yaml holds the changes of a run that works now, or was killed."""
    return _note(workspace, subject).is_file()


def _note(workspace: Workspace, subject: str) -> Path:
    return workspace.state / "this-run" / f"{subject}.json"


def _keys(subject: str) -> tuple[str, ...]:
    return ("subjects", subject, "overrides")


def _apply(workspace: Workspace, subject: str, changes: Changes) -> None:
    with locks.hold(workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
        text = _read(workspace)
        during = config.flow_text(changed_overrides(config.load_view(workspace, subject), changes))
        note = {"before": config.value_text(text, _keys(subject)), "during": during}
        files.write_json(
            _note(workspace, subject), note
        )  # first: a kill must not lose the original
        _write(workspace, config.replace_text(text, _keys(subject), during))


def take_back(workspace: Workspace, subject: str) -> None:
    """Restore the subject's overrides, unless someone has edited them meanwhile."""
    note = _note(workspace, subject)
    if not note.is_file():
        return
    with locks.hold(workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
        saved = json.loads(note.read_bytes())
        text = _read(workspace)
        try:
            is_ours = config.value_text(text, _keys(subject)) == saved["during"]
        except SettingsError:
            is_ours = False
        if is_ours:
            _write(workspace, config.replace_text(text, _keys(subject), saved["before"]))
        elif saved["before"] not in text:
            logger.warning(
                "params.yaml: the overrides of %s were edited during a run with --set and stay as "
                "they are; before the run they were: %s", subject, saved["before"],
            )  # fmt: skip
        note.unlink()


def _read(workspace: Workspace) -> str:
    return workspace.params.read_bytes().decode("utf-8")


def _write(workspace: Workspace, text: str) -> None:
    files.write_bytes(workspace.params, text.encode("utf-8"))
