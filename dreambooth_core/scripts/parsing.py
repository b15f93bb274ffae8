"""Parse a command line into flags. Reports every mistake at once, before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dreambooth_core.config import nearest, problems_of
from dreambooth_core.errors import DreamBoothError, Problem, SettingsError
from dreambooth_core.scripts.flags import Script, ScriptFlags

_NUMBER = re.compile(r"-\.?\d")
_SECRETS = ("hub_token",)


def parse(script: Script, arguments: Sequence[str]) -> ScriptFlags:
    """Parse a command line. Raises SettingsError with every mistake."""
    values, problems = _read(script, arguments)
    try:
        flags = script.flags.model_validate(values)
    except ValidationError as error:
        known = {problem.key for problem in problems}
        found = problems_of(error, script.flags, lambda at: f"--{at[0]}", secrets=_SECRETS)
        raise SettingsError.of([*problems, *(p for p in found if p.key not in known)]) from None
    if problems:
        raise SettingsError.of(problems)
    return flags


def in_flags(error: DreamBoothError, flags: Collection[str]) -> str:
    """The text of an error with flags instead of dotted keys, such as --learning_rate."""
    if not isinstance(error, SettingsError):
        return str(error)

    def spell(key: str) -> str | None:
        section, _, name = key.rpartition(".")
        if not section:
            return key
        return f"--{name}" if name in flags else None

    return "\n".join(problem.spelled(spell) for problem in error.problems)


def _read(script: Script, arguments: Sequence[str]) -> tuple[dict[str, str | bool], list[Problem]]:
    """The values of the command line by flag, and its mistakes."""
    fields = script.flags.model_fields
    values: dict[str, str | bool] = {}
    problems: list[Problem] = []
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            problems.append(Problem("not a flag; flags begin with --", token))
            continue
        name, equals, value = token[2:].partition("=")
        if name not in fields:
            problems.append(_why_unknown(script, name))
            _skip_values(rest)
        elif _is_switch(fields[name]):
            values[name] = True
            if equals:
                problems.append(Problem(f"a switch takes no value, found {value!r}", f"--{name}"))
        elif equals:
            values[name] = value
        elif rest and not _begins_flag(rest[0]):
            values[name] = rest.pop(0)
        else:
            problems.append(Problem("the value is missing", f"--{name}"))
    return values, problems


def _is_switch(field: FieldInfo) -> bool:
    return field.annotation is bool


def _begins_flag(token: str) -> bool:
    return token.startswith("-") and not _NUMBER.match(token)


def _skip_values(rest: list[str]) -> None:
    """Drop the values of an unknown flag, so that only the flag is reported."""
    while rest and not _begins_flag(rest[0]):
        rest.pop(0)


def _why_unknown(script: Script, name: str) -> Problem:
    if name in script.refused:
        return Problem(f"not supported: {script.refused[name]}", f"--{name}")
    near = nearest(name, script.flags.model_fields)
    hint = f"did you mean --{near}?" if near else f"`{script.name} --help` lists all flags"
    return Problem(f"unknown flag; {hint}", f"--{name}")


def help_text(script: Script) -> str:
    """All flags with their descriptions and defaults."""
    about = (script.flags.__doc__ or "").strip()
    launcher = "accelerate launch" if script.engine == "torch" else "python"
    lines = [about, "", f"usage: {launcher} {script.name} --FLAG VALUE ...", ""]
    for name, field in script.flags.model_fields.items():
        value = "" if _is_switch(field) else f" {_allowed(field)}"
        lines.append(f"  --{name}{value}\n        {field.description}{_default(field)}")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return " (required)"
    # The description covers a default of None.
    return "" if _is_switch(field) or field.default is None else f" (default: {field.default})"


def _allowed(field: FieldInfo) -> str:
    """The choices of a flag, or VALUE."""
    annotation = field.annotation
    candidates = [annotation, *get_args(annotation)]
    for candidate in candidates:
        choices = get_args(candidate)
        if choices and all(isinstance(choice, str) for choice in choices):
            return "|".join(choices)
    return "VALUE"
