"""Lists presets (presets/*.yaml) and writes them to params.yaml, keeping the subjects."""

from __future__ import annotations

from dreambooth_core import config, files, locks
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace

_LOCK_TIMEOUT_S = 300.0


def list_all(workspace: Workspace) -> dict[str, str]:
    """Map each preset to the comment on its first line."""
    paths = sorted((workspace.root / "presets").glob("*.yaml"))
    return {path.stem: _first_line(config.read_text(path)) for path in paths}


def _first_line(text: str) -> str:
    return text.partition("\n")[0].lstrip("# ").strip()


def read(workspace: Workspace, name: str) -> str:
    """The text of a preset. Raises SettingsError for an unknown one."""
    known = list_all(workspace)
    if name not in known:
        near = config.nearest(name, known)
        raise SettingsError(
            f"unknown preset {name!r}",
            allowed=", ".join(known) or "presets/ is empty",
            hint=f"did you mean {near}?" if near else "`dreambooth preset list` describes them",
        )
    return config.read_text(workspace.root / "presets" / f"{name}.yaml")


def _editors_line(text: str) -> str:
    """The first line of a settings file if it names the JSON Schema for editors."""
    first = text.splitlines(keepends=True)[:1]
    return "".join(line for line in first if line.startswith("# yaml-language-server:"))


def use(workspace: Workspace, name: str) -> list[str]:
    """Write a preset to params.yaml, keeping the subjects; return the changed keys.

    Raises SettingsError, and leaves the file unchanged, if the result is invalid.
    """
    preset = read(workspace, name)
    with locks.hold(workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
        before = config.read_text(workspace.params)
        after = _editors_line(before) + config.replace_section(preset, "subjects", before)
        ours, theirs = (config.flatten(config.parse_yaml(text)) for text in (before, after))
        for key, value in theirs.items():
            mine = ours.get(key)
            # With a lower version, results of older code would count as up to date.
            if key.startswith("versions.") and isinstance(mine, int) and mine > value:
                after = config.replace_value(after, key.split("."), mine)
        raw = config.parse_yaml(after)
        config.check_launches(workspace, config.check_settings(raw, file=workspace.params.name))
        files.write_bytes(workspace.params, after.encode())
    theirs = config.flatten(raw)
    return sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
