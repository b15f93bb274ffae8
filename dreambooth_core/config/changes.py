"""Changed settings by dotted key, checked as overrides of a subject."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dreambooth_core.config.loading import check_settings, for_subject, load_view, with_strategy
from dreambooth_core.config.sections import OVERRIDABLE, SubjectView
from dreambooth_core.config.yaml_files import mapping, read_yaml
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace

Changes = Mapping[str, Any]
"""Values by dotted key, such as {"train.max_train_steps": 100}."""


def changed_view(
    workspace: Workspace, subject: str, changes: Changes, *, source: str = "--set"
) -> SubjectView:
    """The subject's settings with the changes. Raises SettingsError, naming the key at fault.

    `source` is where the user has written the changes, for messages.
    """
    if not changes:
        return load_view(workspace, subject)
    raw = read_yaml(workspace.params)
    overrides = changed_overrides(load_view(workspace, subject), changes, source=source)
    raw["subjects"][subject]["overrides"] = overrides
    prefix = f"subjects.{subject}.overrides."
    try:
        settings = check_settings(raw, file="params.yaml")
        return with_strategy(workspace, for_subject(settings, subject))
    except SettingsError as error:
        raise SettingsError.of(
            replace(problem, key=problem.key.removeprefix(prefix), file=source)
            if problem.key is not None and problem.key.startswith(prefix)
            else problem
            for problem in error.problems
        ) from None


def changed_overrides(
    view: SubjectView, changes: Changes, *, source: str = "--set"
) -> dict[str, dict[str, Any]]:
    """The subject's overrides with the changes.

    An override replaces a whole field of a section, so a change inside one starts from its value.
    """
    in_force = view.model_dump(mode="json", by_alias=True)
    overrides = copy.deepcopy(view.subject.overrides)
    for key, value in changes.items():
        section, *path = key.split(".")
        if section not in OVERRIDABLE or not all(path) or not path:
            raise SettingsError(
                f"{source} cannot change {key} for one run",
                allowed=", ".join(f"{name}.*" for name in OVERRIDABLE),
                hint="edit params.yaml for any other setting",
            )
        fields = overrides.setdefault(section, {})
        values = mapping(in_force[section])
        for name in path[:-1]:
            values = mapping(mapping(values).get(name))
            fields[name] = dict(mapping(fields.get(name)) or values)
            fields = fields[name]
        fields[path[-1]] = value
    return overrides
