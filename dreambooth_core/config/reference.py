"""The reference of all settings, made from their declarations.

`dreambooth settings`, docs/settings.md, the JSON Schema for editors and the comments in params.yaml
all come from here. `python -m dreambooth_core.config write` updates the files.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth_core.config.effects import dvc_params
from dreambooth_core.config.sections import OVERRIDABLE, Effect, Settings
from dreambooth_core.config.yaml_files import mapping, with_comments
from dreambooth_core.workspace import STAGES

NAME = "NAME"
"""Stands for the name of a subject in a key, such as `subjects.NAME.identifier`."""

EFFECTS = {
    Effect.RESULT: "changes the result",
    Effect.OUTPUT: "selects what is published; the store keeps the work done",
    Effect.NONE: "never changes a result",
}
_REQUIRED = object()
_Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A setting: its key, its meaning, and what changes with it."""

    key: str
    meaning: str
    allowed: str
    effect: Effect
    stages: tuple[str, ...]
    """The stages that DVC runs again after a change; later ones follow if their input changes."""
    schema: Mapping[str, Any]
    """The JSON Schema of its values."""
    _default: Any = _REQUIRED

    @property
    def has_default(self) -> bool:
        """Whether the setting may be left out."""
        return self._default is not _REQUIRED

    @property
    def default(self) -> Any:
        """The value if the setting is left out; None for a setting without a default."""
        return self._default if self.has_default else None

    @property
    def is_section(self) -> bool:
        """Whether it is a whole section that may be null."""
        return any("$ref" in option for option in self.schema.get("anyOf", ()))

    @property
    def section(self) -> str:
        """The top-level section."""
        return self.key.partition(".")[0]


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Every setting of params.yaml, in the order of the declarations."""
    schema = Settings.model_json_schema()
    return tuple(_entries(schema, schema["$defs"], prefix=""))


@functools.cache
def section_meanings() -> dict[str, str]:
    """The description of each top-level section."""
    schema = Settings.model_json_schema()
    found: dict[str, str] = {}
    for name, field in schema["properties"].items():
        own, section = field.get("description"), _section_of(field, schema["$defs"])
        found[name] = own or (section or {}).get("description", "")
    return found


def key_of(key: str) -> str:
    """The key in this reference of a key in params.yaml: a subject's name becomes NAME."""
    parts = key.split(".")
    return ".".join([*parts[:1], NAME, *parts[2:]]) if key.startswith("subjects.") else key


def _entries(section: _Schema, defs: _Schema, *, prefix: str) -> Iterator[Entry]:
    required = set(section.get("required", ()))
    for name, field in section["properties"].items():
        key = f"{prefix}{name}"
        inner = _section_of(field, defs)
        if inner is None or _is_nullable(field):
            yield _entry(key, field, inner, is_required=name in required)
        if inner is not None:
            below = f"{key}.{NAME}." if key == "subjects" else f"{key}."
            yield from _entries(inner, defs, prefix=below)


def _entry(key: str, field: _Schema, inner: _Schema | None, *, is_required: bool) -> Entry:
    return Entry(
        key=key,
        meaning=field.get("description") or (inner or {}).get("description", ""),
        allowed="this section, or null" if inner else _allowed(field),
        effect=Effect(field.get("effect", Effect.RESULT)),
        stages=_stages_of(key),
        schema=field,
        _default=_REQUIRED if is_required else field.get("default"),
    )


def _section_of(field: _Schema, defs: _Schema) -> _Schema | None:
    """The section that a field holds, or that each entry of a mapping of sections holds."""
    named = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
    for option in (field, *field.get("anyOf", ()), *named):
        reference: str = mapping(option).get("$ref", "")
        if reference:
            return defs[reference.rpartition("/")[2]]
    return None


def _is_nullable(field: _Schema) -> bool:
    return {"type": "null"} in field.get("anyOf", ())


def _allowed(field: _Schema) -> str:
    """The allowed values of a field in words."""
    options = field.get("anyOf", [field])
    return " or ".join(dict.fromkeys(_allowed_of(option) for option in options))


def _allowed_of(option: _Schema) -> str:
    if "enum" in option:
        return ", ".join(map(str, option["enum"]))
    if "const" in option:
        return str(option["const"])
    kind = option.get("type")
    if kind == "array":
        return "list of names"
    if kind == "string" and "pattern" in option:
        return f"text that matches {option['pattern']}"
    words = {"boolean": "true or false", "object": "mapping", "string": "text"}
    if kind in words:
        return words[kind]
    return f"{'whole number' if kind == 'integer' else kind}{_bounds(option)}"


def _bounds(option: _Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {option[name]:g}" for name, sign in signs.items() if name in option]
    return f" {' and '.join(found)}" if found else ""


def _stages_of(key: str) -> tuple[str, ...]:
    """The stages with a parameter in dvc.yaml that this key is part of, or that is part of it."""
    if key == f"subjects.{NAME}.instance_dir":
        # The photos are a dependency of validate; select depends on the whole entry of a subject.
        return ("validate", "select")

    def watches(stage: str) -> bool:
        params = [param.replace("${key}", NAME) for param in dvc_params(stage)]
        return any(f"{key}.".startswith(f"{p}.") or f"{p}.".startswith(f"{key}.") for p in params)

    return tuple(stage for stage in STAGES if watches(stage))


def comments() -> dict[str, str]:
    """The comment behind each setting and each section in a settings file.

    `subjects` has its own above it: commands add entries to this section.
    """
    sections = {key: text for key, text in section_meanings().items() if key != "subjects"}
    return {**sections, **{entry.key: entry.meaning for entry in entries()}}


def commented(text: str, within: str = "") -> str:
    """A settings file with the meaning of each setting (`within` a section) behind its value."""
    known = comments()
    return with_comments(
        text, lambda key: known.get(key_of(key)) if f"{key}.".startswith(within) else None
    )


def json_schema() -> str:
    """The JSON Schema of params.yaml, with which editors complete and check it."""
    schema = Settings.model_json_schema()
    defs = schema["$defs"]
    for name, field in schema["properties"].items():
        field["description"] = section_meanings()[name]
    schema["properties"]["subjects"]["additionalProperties"] = False  # names have a pattern
    overrides = defs["SubjectSettings"]["properties"]["overrides"]
    overrides["additionalProperties"] = False
    overrides["properties"] = {
        name: _partial(_section_of(schema["properties"][name], defs) or {}) for name in OVERRIDABLE
    }
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "params.yaml of the DreamBooth pipeline",
        "description": "All settings. The pipeline also checks their combinations.",
    }
    return json.dumps({**schema, **head}, indent=2, ensure_ascii=False) + "\n"


def _partial(section: _Schema) -> dict[str, Any]:
    """A section of which every field may be left out."""
    kept = ("properties", "type", "additionalProperties", "description")
    return {key: section[key] for key in kept if key in section}


def markdown() -> str:
    """The page docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every setting of `params.yaml`. This page is generated from the settings' declarations: "
        "`python -m dreambooth_core.config write`.",
        "",
        "- `dreambooth settings` lists them with their present values, `dreambooth settings WORD` "
        "searches, and `dreambooth settings KEY` shows one in full.",
        "- A setting without a default must stand in the file. `dreambooth preset use NAME` writes "
        "a complete file.",
        "- *Runs again*: the stages that DVC runs after a change. Stages after them follow if "
        "their input changes.",
        "- Editors with a YAML language server complete and check the file with "
        "`presets/params.schema.json`.",
        "- `dreambooth plan` also checks the combinations, the models and this machine.",
    ]
    for section, meaning in section_meanings().items():
        own = [entry for entry in entries() if entry.section == section]
        lines += ["", f"## {section}", "", meaning, "", *_table(own)]
    return "\n".join(lines) + "\n"


def _table(rows: Iterable[Entry]) -> Iterator[str]:
    yield "| setting | meaning | allowed | default | runs again |"
    yield "|---|---|---|---|---|"
    for entry in rows:
        default = f"`{json.dumps(entry.default)}`" if entry.has_default else ""
        stages = "nothing" if not entry.stages else ", ".join(entry.stages)
        cells = (entry.meaning, entry.allowed.replace("|", "\\|"), default, stages)
        yield f"| {entry.key} | {' | '.join(cells)} |"
