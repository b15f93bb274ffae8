"""A command line to flags: every mistake at once, before torch is imported."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dreambooth_core.errors import SettingsError
from dreambooth_core.scripts.flags import Script, ScriptFlags

_NUMBER = re.compile(r"-\.?\d")
_SECRET = "hub_token"


def parse(script: Script, arguments: Sequence[str]) -> ScriptFlags:
    """The flags of a command line. Raises SettingsError that names every mistake in it."""
    values, problems = _read(script, arguments)
    told = {problem.partition(":")[0] for problem in problems}
    try:
        flags = script.flags.model_validate(values)
    except ValidationError as error:
        lines = (_describe(dict(item)) for item in error.errors(include_url=False))
        problems += [line for line in lines if line.partition(":")[0] not in told]
        raise SettingsError("\n".join(problems)) from None
    if problems:
        raise SettingsError("\n".join(problems))
    return flags


def _read(script: Script, arguments: Sequence[str]) -> tuple[dict[str, str | bool], list[str]]:
    """What stands on the command line by flag, and what cannot be understood of it."""
    fields = script.flags.model_fields
    values: dict[str, str | bool] = {}
    problems: list[str] = []
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            problems.append(f"{token}: not a flag; flags begin with --")
            continue
        name, equals, value = token[2:].partition("=")
        if name not in fields:
            problems.append(_why_unknown(script, name))
            _skip_values(rest)
        elif _is_switch(fields[name]):
            values[name] = True
            if equals:
                problems.append(f"--{name}: a switch takes no value, found {value!r}")
        elif equals:
            values[name] = value
        elif rest and not _begins_flag(rest[0]):
            values[name] = rest.pop(0)
        else:
            problems.append(f"--{name}: its value is missing")
    return values, problems


def _is_switch(field: FieldInfo) -> bool:
    return field.annotation is bool


def _begins_flag(token: str) -> bool:
    return token.startswith("-") and not _NUMBER.match(token)


def _skip_values(rest: list[str]) -> None:
    """Drop the values of a flag that is not known: they are not mistakes of their own."""
    while rest and not _begins_flag(rest[0]):
        rest.pop(0)


def _why_unknown(script: Script, name: str) -> str:
    if name in script.refused:
        return f"--{name}: not taken: {script.refused[name]}"
    near = difflib.get_close_matches(name, list(script.flags.model_fields), n=1, cutoff=0.6)
    hint = f"did you mean --{near[0]}?" if near else f"`{script.name} --help` lists all"
    return f"--{name}: unknown flag; {hint}"


def _describe(error: dict[str, Any]) -> str:
    """One line: the flag, what is wrong, what was found."""
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return f"--{name}: missing"
    found = "a value" if name == _SECRET else repr(error["input"])
    return f"--{name}: {error['msg']}, found {found}"


def help_text(script: Script) -> str:
    """All flags with their defaults, one a line."""
    about = (script.flags.__doc__ or "").strip()
    launcher = "accelerate launch" if script.engine == "torch" else "python"
    lines = [about, "", f"usage: {launcher} {script.name} --FLAG VALUE ...", ""]
    for name, field in script.flags.model_fields.items():
        default = "must be given" if field.is_required() else f"default: {field.default}"
        shown = "" if _is_switch(field) else f" {_allowed(field)}"
        ends = "" if _is_switch(field) else f" ({default})"
        lines.append(f"  --{name}{shown}\n        {field.description}{ends}")
    return "\n".join(lines)


def _allowed(field: FieldInfo) -> str:
    """The choices of a flag, or VALUE."""
    annotation = field.annotation
    candidates = [annotation, *get_args(annotation)]
    for candidate in candidates:
        choices = get_args(candidate)
        if choices and all(isinstance(choice, str) for choice in choices):
            return "|".join(choices)
    return "VALUE"
