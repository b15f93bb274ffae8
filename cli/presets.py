"""Presets: complete settings in presets/*.yaml, written into params.yaml around the subjects."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

from dreambooth_core import config, files
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace


def list_all(workspace: Workspace) -> dict[str, str]:
    """Names of the presets, each with the comment on its first line."""
    paths = sorted((workspace.root / "presets").glob("*.yaml"))
    return {path.stem: _first_line(path.read_text(encoding="utf-8")) for path in paths}


def _first_line(text: str) -> str:
    return text.partition("\n")[0].lstrip("# ").strip()


def read(workspace: Workspace, name: str) -> str:
    """The text of a preset. Raises SettingsError for an unknown one."""
    known = list_all(workspace)
    if name not in known:
        raise SettingsError(
            f"no preset is called {name!r}",
            allowed=", ".join(known) or "presets/ is empty",
            hint="`dreambooth preset list` shows them",
        )
    return (workspace.root / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def parse(text: str) -> dict[str, Any]:
    """The settings that a preset holds."""
    return YAML(typ="safe", pure=True).load(text)


def use(workspace: Workspace, name: str) -> list[str]:
    """Write a preset into params.yaml, keeping the subjects; returns the keys that changed.

    Raises SettingsError, and leaves the file as it is, when the two do not go together.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    before = yaml.load(workspace.params.read_text(encoding="utf-8"))
    after = yaml.load(read(workspace, name))
    after["subjects"] = before["subjects"]
    after["versions"] = _newest(before.get("versions"), after["versions"])
    text = io.StringIO()
    yaml.dump(after, text)
    changed = _differences(before, after)
    with files.atomic_file(workspace.params) as aside:
        aside.write_text(text.getvalue(), encoding="utf-8")
        # Settings that cannot be used do not take the place of those that can.
        config.check_launches(workspace, config.load_settings(aside))
    return changed


def _newest(ours: Any, presets: Any) -> Any:
    """Of each stage the higher version: with a lower one old results would count as up to date."""
    if isinstance(ours, Mapping):
        for stage, version in presets.items():
            mine = ours.get(stage)
            presets[stage] = max(version, mine) if isinstance(mine, int) else version
    return presets


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> list[str]:
    changed: list[str] = []
    for key in sorted({*before, *after}):
        one, two = before.get(key), after.get(key)
        name = f"{at}{key}"
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            changed += _differences(one, two, f"{name}.")
        elif one != two:
            changed.append(name)
    return changed
