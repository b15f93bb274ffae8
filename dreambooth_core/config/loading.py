"""Loading of params.yaml. Reports every mistake at once, with its dotted key and a hint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dreambooth_core.config.keys import Location, nearest, problems_of
from dreambooth_core.config.launching import read_launch_config, strategy_of
from dreambooth_core.config.sections import OVERRIDABLE, Section, Settings, SubjectView
from dreambooth_core.config.yaml_files import mapping, read_yaml
from dreambooth_core.errors import Problem, SettingsError
from dreambooth_core.workspace import Workspace

_MISSING = "missing; add it (presets/ has complete files to copy from)"


def load_settings(path: Path) -> Settings:
    """Load and check a settings file. Raises SettingsError with every mistake at once."""
    return check_settings(read_yaml(path), file=path.name)


def check_settings(raw: Any, *, file: str) -> Settings:
    """Check the content of a settings file. Raises SettingsError with every mistake at once."""
    if not isinstance(raw, dict):
        raise SettingsError(f"{file} must contain sections", got=f"{raw!r}"[:80])
    sections = mapping(raw)
    if odd := list(_keys_other_than_text(sections)):
        raise SettingsError.of(replace(problem, file=file) for problem in odd)
    problems = [*_problems(Settings, sections), *_override_problems(sections)]
    if problems:
        raise SettingsError.of(replace(problem, file=file) for problem in problems)
    return Settings.model_validate(raw)


def for_subject(settings: Settings, name: str) -> SubjectView:
    """The settings of one subject. Raises SettingsError for an unknown subject."""
    if name not in settings.subjects:
        near = nearest(name, settings.subjects)
        raise SettingsError(
            f"no subject has the name {name!r}",
            allowed=", ".join(sorted(settings.subjects)) or "params.yaml has no subjects",
            hint=f"did you mean {near}?" if near else "add one with `dreambooth subject add`",
        )
    subject = settings.subjects[name]
    merged = settings.model_dump(by_alias=True, exclude={"subjects"})
    for section, fields in subject.overrides.items():
        merged[section] = {**(merged[section] or {}), **fields}
    return SubjectView.model_validate({**merged, "name": name, "subject": subject})


def load_view(workspace: Workspace, subject: str) -> SubjectView:
    """Load the settings of a subject from params.yaml, with `train.strategy` filled in.

    Raises SettingsError for invalid settings, and for a launch file that contradicts them.
    """
    return with_strategy(workspace, for_subject(load_settings(workspace.params), subject))


def load_views(workspace: Workspace) -> list[SubjectView]:
    """Load the settings of all subjects like `load_view`, but read params.yaml only once."""
    settings = load_settings(workspace.params)
    return [with_strategy(workspace, for_subject(settings, name)) for name in settings.subjects]


def with_strategy(workspace: Workspace, view: SubjectView) -> SubjectView:
    """Fill in `train.strategy`. Raises SettingsError for a launch file that contradicts it."""
    strategy = strategy_of(view.train, read_launch_config(workspace, view.train))
    train = view.train.model_copy(update={"strategy": strategy})
    return view.model_copy(update={"train": train})


def check_launches(workspace: Workspace, settings: Settings) -> None:
    """Check the launch files of all subjects, or of the shared settings if there are no subjects.

    Raises SettingsError with every mistake, each reported once.
    """
    trains = [for_subject(settings, name).train for name in sorted(settings.subjects)]
    problems: list[Problem] = []
    for train in trains or [settings.train]:
        try:
            read_launch_config(workspace, train)
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError.of(dict.fromkeys(problems))


def _keys_other_than_text(values: Mapping[Any, Any], prefix: str = "") -> Iterator[Problem]:
    for key, value in values.items():
        if not isinstance(key, str):
            text = f"not the name of a setting or a subject: the {type(key).__name__} {key!r:.80}"
            yield Problem(text, prefix or None)
        yield from _keys_other_than_text(mapping(value), f"{prefix}.{key}".lstrip("."))


def _problems(
    model: type[BaseModel], raw: Mapping[str, Any], prefix: Sequence[str] = ()
) -> list[Problem]:
    def key_of(location: Location) -> str:
        return ".".join((*prefix, *map(str, location)))

    try:
        model.model_validate(raw)
    except ValidationError as error:
        found = problems_of(error, model, key_of)
        return [replace(p, text=_MISSING) if p.text == "missing" else p for p in found]
    return []


def _override_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the mistakes in the subjects' overrides that are not in the shared section too."""
    for name, subject in mapping(raw.get("subjects")).items():
        for section, fields in mapping(mapping(subject).get("overrides")).items():
            prefix = ("subjects", name, "overrides", section)
            if section not in OVERRIDABLE:
                near = nearest(section, OVERRIDABLE)
                hint = f"did you mean {near}?" if near else ", ".join(OVERRIDABLE)
                text = f"not a section that a subject can override; {hint}"
                yield Problem(text, ".".join(prefix))
                continue
            base, model = mapping(raw.get(section)), _section_model(section)
            already = _problems(model, base, prefix)
            found = _problems(model, {**base, **mapping(fields)}, prefix)
            yield from (problem for problem in found if problem not in already)


def _section_model(section: str) -> type[BaseModel]:
    annotation = Settings.model_fields[section].annotation
    candidates = [annotation, *get_args(annotation)]
    return next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
