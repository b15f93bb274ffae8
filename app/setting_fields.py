"""The form of the settings, made from their own declarations: label, meaning, bounds, effect."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from app.layout import listen, tag, text_input
from dreambooth_core.config.reference import Entry

_OFF, _ON = "null", "on"


class SettingField:
    """One setting: a list to choose from, or a text field. `on_change` gets its parsed value.

    A whole section is on or off: its value is true or None.
    """

    def __init__(self, entry: Entry, value: Any, on_change: Callable[[str, Any], Any]) -> None:
        self.entry, self._on_change = entry, on_change
        with tag("div", classes="field setting") as self.box:
            label = tag("label", entry.key)
            tag("p", entry.meaning, classes="meaning")
            self.input = _choices(entry, value) or text_input(_spell(value))
            label.props["for"] = self.input.html_id
            hint = tag("p", _hint(entry), classes="small")
            self.error = tag("p", "", classes="wrong", role="alert")
        self.input.props["aria-describedby"] = f"{hint.html_id} {self.error.html_id}"
        listen(self.input, "change", self._changed, value="e.target.value")

    async def _changed(self, text: str) -> None:
        await self._on_change(self.entry.key, parse(self.entry, text))

    def enable(self, *, is_enabled: bool) -> None:
        """Accept a value, or not while the setting's section is off."""
        if is_enabled:
            self.input.props.pop("disabled", None)
        else:
            self.input.props["disabled"] = True
        self.input.update()

    def show_error(self, text: str | None) -> None:
        """Show the mistake, or None."""
        if self.error.text != (text or ""):
            self.error.set_text(text or "")
            self.input.props["aria-invalid"] = "true" if text else "false"
            self.input.update()

    def matches(self, word: str) -> bool:
        """Whether a search finds the setting."""
        entry = self.entry
        return word.lower() in f"{entry.key} {entry.meaning} {entry.allowed}".lower()


def parse(entry: Entry, text: str) -> Any:
    """The value that a user's text stands for; the settings' own check says whether it is valid."""
    if entry.is_section:
        return True if text == _ON else None
    kinds = [option.get("type") for option in _options(entry.schema)]
    text = text.strip()
    if "null" in kinds and text in ("", _OFF):
        return None
    if "boolean" in kinds and text in ("true", "false"):
        return text == "true"
    if "array" in kinds:
        return [part.strip() for part in text.split(",") if part.strip()]
    if {"integer", "number"} & set(kinds):
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _choices(entry: Entry, value: Any) -> Any:
    """A list of the allowed values, if there are few."""
    options = _options(entry.schema)
    named: list[str] = [_ON] if entry.is_section else []
    for option in options:
        named += [str(each) for each in option.get("enum", ())]
        named += [str(option["const"])] if "const" in option else []
        named += ["true", "false"] if option.get("type") == "boolean" else []
        named += [_OFF] if option.get("type") == "null" else []
    if len(named) < len(options) or named == [_OFF]:
        return None
    with tag("select") as box:
        for each in named:
            shown = "off" if each == _OFF else each
            chosen = _ON if entry.is_section and value else _spell(value) or _OFF
            tag("option", shown, value=each, selected=each == chosen)
    return box


def _options(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(schema.get("anyOf", [schema]))


def _spell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _hint(entry: Entry) -> str:
    """The allowed values, the default, and what runs again."""
    parts = [f"Allowed: {entry.allowed.replace('null', 'empty (off)')}."]
    if entry.has_default:
        parts.append(f"Default: {_spell(entry.default) or 'off'}.")
    parts.append(f"Runs again: {', '.join(entry.stages) or 'nothing'}.")
    return " ".join(parts)
