"""Changes single settings in params.yaml and leaves every other byte as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from dreambooth_core import config, files, locks
from dreambooth_core.config import reference
from dreambooth_core.errors import Problem, SettingsError
from dreambooth_core.workspace import Workspace

_LOCK_TIMEOUT_S = 300.0
_SECTIONS = frozenset(entry.key for entry in reference.entries() if entry.is_section)
"""Settings whose value is a block of lines; other mappings take one line."""


def save(workspace: Workspace, values: Mapping[str, Any]) -> None:
    """Write values by dotted key. Raises SettingsError, and changes nothing, for a wrong one.

    Only these keys are written, so changes that others make at the same time stay.
    """
    with locks.hold(workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
        before = config.read_text(workspace.params)
        after = changed_text(before, values)
        _check(workspace, after)
        if after != before:
            files.write_bytes(workspace.params, after.encode())


def save_for_subject(workspace: Workspace, name: str, key: str, *, value: Any) -> None:
    """Write a setting such as `data.masks` for one subject, unless it has that value.

    Raises SettingsError, and changes nothing, for a wrong one.
    """
    section, _, field = key.partition(".")
    if getattr(getattr(config.load_view(workspace, name), section), field) == value:
        return
    overrides = config.load_settings(workspace.params).subjects[name].overrides
    changed = {**overrides, section: {**overrides.get(section, {}), field: value}}
    save(workspace, {f"subjects.{name}.overrides": changed})


def problems_of(workspace: Workspace, values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the settings after a change of some values."""
    try:
        _check(workspace, changed_text(config.read_text(workspace.params), values))
    except SettingsError as error:
        return list(error.problems)
    return []


def changed_text(text: str, values: Mapping[str, Any]) -> str:
    """A settings file with other values. Raises SettingsError for a section that is off."""
    for key, value in values.items():
        if isinstance(value, dict) and key in _SECTIONS:
            section = config.set_section(text, key.split("."), cast("dict[str, Any]", value))
            text = reference.commented(section, within=f"{key}.")
        else:
            text = config.set_value(text, key.split("."), value)
    return text


def _check(workspace: Workspace, text: str) -> None:
    raw = config.parse_yaml(text, name=workspace.params.name)
    config.check_launches(workspace, config.check_settings(raw, file=workspace.params.name))
