"""Reading params.yaml: all errors at once, with dotted keys, what was found, and hints."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dreambooth_core.config.launching import read_launch_config
from dreambooth_core.config.reading import mapping, read_yaml
from dreambooth_core.config.sections import OVERRIDABLE, Section, Settings, SubjectView
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace


def load_settings(path: Path) -> Settings:
    """Read and check a settings file. Raises SettingsError with every error at once."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise SettingsError(f"{path.name} must hold sections", got=f"{raw!r}"[:80])
    problems = [*_problems(Settings, mapping(raw)), *_override_problems(mapping(raw))]
    if problems:
        raise SettingsError("\n".join(f"{path.name}: {line}" for line in problems))
    return Settings.model_validate(raw)


def for_subject(settings: Settings, name: str) -> SubjectView:
    """One subject's view of the settings. Raises SettingsError for an unknown subject."""
    if name not in settings.subjects:
        raise SettingsError(
            f"no subject is called {name!r}",
            allowed=", ".join(sorted(settings.subjects)) or "none is there yet",
            hint=_nearest(name, settings.subjects) or "add one with `dreambooth subject add`",
        )
    subject = settings.subjects[name]
    merged = settings.model_dump(by_alias=True, exclude={"subjects"})
    for section, fields in subject.overrides.items():
        merged[section] = {**(merged[section] or {}), **fields}
    return SubjectView.model_validate({**merged, "name": name, "subject": subject})


def load_view(workspace: Workspace, subject: str) -> SubjectView:
    """The settings of `subject` as params.yaml holds them at this moment.

    Raises SettingsError for wrong settings, and for a launch configuration that they do not fit.
    """
    view = for_subject(load_settings(workspace.params), subject)
    read_launch_config(workspace, view.train)
    return view


def check_launches(workspace: Workspace, settings: Settings) -> None:
    """Check the launch configurations that the subjects (or the bare settings) name.

    Raises SettingsError with every error at once, each told once.
    """
    trains = [for_subject(settings, name).train for name in sorted(settings.subjects)]
    problems: list[str] = []
    for train in trains or [settings.train]:
        try:
            read_launch_config(workspace, train)
        except SettingsError as error:
            problems.append(str(error))
    if problems:
        raise SettingsError("\n".join(dict.fromkeys(problems)))


def _problems(model: type[BaseModel], raw: Mapping[str, Any], at: str = "") -> list[str]:
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return [_describe(model, dict(item), at) for item in error.errors()]
    return []


def _override_problems(raw: Mapping[str, Any]) -> list[str]:
    """Errors in the subjects' overrides, each with its dotted key."""
    problems: list[str] = []
    for name, subject in mapping(raw.get("subjects")).items():
        for section, fields in mapping(mapping(subject).get("overrides")).items():
            at = f"subjects.{name}.overrides.{section}"
            if section not in OVERRIDABLE:
                hint = _nearest(section, OVERRIDABLE) or ", ".join(OVERRIDABLE)
                problems.append(f"{at}: not a section that a subject can override; {hint}")
            else:
                base = mapping(raw.get(section))
                model = _section_model(section)
                already = _problems(model, base)
                found = _problems(model, {**base, **mapping(fields)})
                problems += [f"{at}.{line}" for line in found if line not in already]
    return problems


def _section_model(section: str) -> type[BaseModel]:
    annotation = Settings.model_fields[section].annotation
    candidates = [annotation, *get_args(annotation)]
    return next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))


def _describe(model: type[BaseModel], error: dict[str, Any], at: str) -> str:
    """One line: dotted key, what is wrong, what was found, and the nearest known name."""
    location = [str(part) for part in error["loc"]]
    key = ".".join([at, *location] if at else location)
    if error["type"] == "extra_forbidden":
        known = _known_names(model, location[:-1])
        hint = _nearest(location[-1], known) or f"known here: {', '.join(sorted(known))}"
        return f"{key}: unknown setting; {hint}"
    if error["type"] == "missing":
        return f"{key}: missing; add it (presets/ holds complete files to copy from)"
    message = error["msg"].removeprefix("Value error, ")
    found = error.get("input")
    return (
        f"{key}: {message}, found {found!r}" if not isinstance(found, dict) else f"{key}: {message}"
    )


def _known_names(model: type[BaseModel], location: Iterable[str]) -> set[str]:
    """Field names of the section at `location` below `model`."""
    current = model
    for part in location:
        field = current.model_fields.get(part)
        if field is None:
            continue  # a subject's own name: its fields follow
        annotation = field.annotation
        nested = [annotation, *get_args(annotation)]
        models = [c for c in nested if isinstance(c, type) and issubclass(c, BaseModel)]
        if models:
            current = models[0]
    return {field.alias or name for name, field in current.model_fields.items()}


def _nearest(name: str, known: Iterable[str]) -> str | None:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {match[0]}?" if match else None
