"""The command settings: every setting with its meaning, its values and its effect."""

from __future__ import annotations

import itertools
import json as json_text
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli import presets
from cli.session import JsonOption, open_session
from dreambooth_core import config
from dreambooth_core.config import reference
from dreambooth_core.config.reference import Entry
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace

_NOT_SET = object()


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(settings)


def settings(
    word: Annotated[
        str | None,
        typer.Argument(help="A key, such as train.learning_rate, or a word to search for."),
    ] = None,
    *,
    json: JsonOption = False,
) -> None:
    """Explain the settings: meaning, value, default, and what runs again after a change."""
    session = open_session(as_json=json)
    described = Described(session.workspace)
    found = described.find(word or "")
    rows = [described.row(entry) for entry in found]

    def show(console: Console) -> None:
        _show_one(console, rows[0]) if len(rows) == 1 else _show_list(console, rows)

    session.terminal.finish({"settings": rows}, show)


class Described:
    """The settings of a workspace. Reads files that have mistakes too."""

    def __init__(self, workspace: Workspace) -> None:
        self._entries = reference.entries()
        self._values = config.flatten(config.read_yaml(workspace.params) or {})
        self._presets = {
            name: config.flatten(config.parse_yaml(presets.read(workspace, name)))
            for name in presets.list_all(workspace)
        }

    def find(self, word: str) -> list[Entry]:
        """The setting of this key, or all that mention the word. Raises SettingsError."""
        exact = [entry for entry in self._entries if entry.key == reference.key_of(word)]
        wanted = word.lower()
        found = exact or [
            entry
            for entry in self._entries
            if wanted in f"{entry.key} {entry.meaning} {entry.allowed}".lower()
        ]
        if found:
            return found
        keys = {entry.key: entry.key for entry in self._entries}
        names = {entry.key.rpartition(".")[2]: entry.key for entry in self._entries}
        near = [
            {**names, **keys}[name] for name in config.similar(word, {**names, **keys}, limit=3)
        ]
        raise SettingsError(
            f"no setting has or mentions {word!r}",
            hint=f"did you mean {' or '.join(dict.fromkeys(near))}?"
            if near
            else "`dreambooth settings` lists them all",
        )

    def row(self, entry: Entry) -> dict[str, Any]:
        """A setting with its values, as plain JSON."""
        values = {
            key: value for key, value in self._values.items() if reference.key_of(key) == entry.key
        }
        differs = entry.has_default and any(v != entry.default for v in values.values())
        return {
            "key": entry.key,
            "meaning": entry.meaning,
            "allowed": entry.allowed,
            "has_default": entry.has_default,
            "default": entry.default,
            "values": values,
            "is_section": any(key.startswith(f"{entry.key}.") for key in self._values),
            "differs_from_default": differs,
            "overrides": self._overrides(entry.key),
            "presets": self._preset_values(entry.key),
            "effect": reference.EFFECTS[entry.effect],
            "stages": list(entry.stages),
        }

    def _overrides(self, key: str) -> dict[str, Any]:
        """The subjects' own values of a setting."""
        found: dict[str, Any] = {}
        for path, value in self._values.items():
            root, _, rest = path.partition(".overrides.")
            if rest == key:
                found[root.removeprefix("subjects.")] = value
        return found

    def _preset_values(self, key: str) -> dict[str, Any]:
        found = {name: values.get(key, _NOT_SET) for name, values in self._presets.items()}
        return {name: value for name, value in found.items() if value is not _NOT_SET}


def _show_list(console: Console, rows: list[dict[str, Any]]) -> None:
    for section, own in itertools.groupby(rows, lambda row: row["key"].partition(".")[0]):
        table = Table(title=section, title_justify="left", title_style="bold", box=None)
        for column in ("setting", "value", "meaning"):
            table.add_column(column, overflow="fold", ratio=2 if column == "meaning" else 1)
        for row in own:
            name = row["key"].partition(".")[2] or section
            table.add_row(name, Text(_present(row)), Text(row["meaning"]))
        console.print(table)
    console.print("* differs from the default; one in full: `dreambooth settings KEY`")


def _present(row: dict[str, Any]) -> str:
    """The values that stand in the file, with a mark if they differ from the default."""
    values = list(dict.fromkeys(_spell(value) for value in row["values"].values()))
    mark = " *" if row["differs_from_default"] else ""
    more = [f"{name}: {_spell(value)}" for name, value in row["overrides"].items()]
    return ", ".join(values) + mark + (f" ({', '.join(more)})" if more else "")


def _show_one(console: Console, row: dict[str, Any]) -> None:
    console.print(row["key"], style="bold")
    console.print(row["meaning"])
    default = _spell(row["default"]) if row["has_default"] else "none: it must stand in the file"
    values = row["values"]
    if len(values) == 1 and row["key"] in values:
        present = _spell(values[row["key"]])
    else:
        present = ", ".join(f"{key}: {_spell(value)}" for key, value in values.items())
    if row["differs_from_default"]:
        present += " (differs from the default)"
    lines = {
        "value": present or ("set" if row["is_section"] else "not in params.yaml"),
        "default": default,
        "allowed": row["allowed"],
        "effect": row["effect"],
        "runs again": ", ".join(row["stages"]) or "nothing",
        "subjects with their own": _listed(row["overrides"]),
        "presets": _listed(row["presets"]),
    }
    for title, text in lines.items():
        if text:
            console.print(f"  {title + ':':<25}{text}")


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_spell(value)}" for name, value in values.items())


def _spell(value: Any) -> str:
    """A value as YAML has it."""
    return value if isinstance(value, str) else json_text.dumps(value)
