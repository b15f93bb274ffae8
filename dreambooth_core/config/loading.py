"""Reading params.yaml: all errors at once, with dotted keys, what was found, and hints."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dreambooth_core.config.sections import OVERRIDABLE, Section, Settings, SubjectView
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace


def read_yaml(path: Path) -> Any:
    """The content of a YAML 1.2 file (so that 5e-6 is a number). Raises SettingsError."""
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path.name} does not exist in {path.parent}",
            hint="run from the project's folder, or write one with `dreambooth preset use pocket`",
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} is not valid YAML", got=str(error)) from None


def load_settings(path: Path) -> Settings:
    """Read and check a settings file. Raises SettingsError with every error at once."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise SettingsError(f"{path.name} must hold sections", got=type(raw).__name__)
    problems = [*_problems(Settings, raw), *_override_problems(raw)]
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
    """The settings of `subject` as params.yaml holds them at this moment."""
    return for_subject(load_settings(workspace.params), subject)


def _problems(model: type[BaseModel], raw: Mapping[str, Any], at: str = "") -> list[str]:
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return [_describe(model, dict(item), at) for item in error.errors()]
    return []


def _override_problems(raw: Mapping[str, Any]) -> list[str]:
    """Errors in the subjects' overrides, each with its dotted key."""
    problems: list[str] = []
    subjects = raw.get("subjects")
    for name, subject in subjects.items() if isinstance(subjects, dict) else ():
        overrides = subject.get("overrides") if isinstance(subject, dict) else None
        for section, fields in overrides.items() if isinstance(overrides, dict) else ():
            at = f"subjects.{name}.overrides.{section}"
            if section not in OVERRIDABLE:
                hint = _nearest(str(section), OVERRIDABLE)
                allowed = ", ".join(OVERRIDABLE)
                problems.append(
                    f"{at}: not a section that a subject can override; {hint or allowed}"
                )
            elif isinstance(fields, dict):
                base = raw.get(section)
                merged = {**(base if isinstance(base, dict) else {}), **fields}
                model = _section_model(section)
                already = set(_problems(model, base)) if isinstance(base, dict) else set()
                found = [p for p in _problems(model, merged) if p not in already]
                problems += [f"{at}.{line}" for line in found]
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
