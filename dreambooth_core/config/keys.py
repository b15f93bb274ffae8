"""Dotted keys of settings: flattening, spelling suggestions, and pydantic's errors by key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from dreambooth_core.errors import Problem

Location = tuple[int | str, ...]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys. An empty mapping counts as a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def similar(name: str, known: Iterable[str], *, limit: int) -> list[str]:
    """The known names most similar to `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=limit, cutoff=0.6)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to `name`, or None."""
    return next(iter(similar(name, known, limit=1)), None)


def problems_of(
    error: ValidationError,
    model: type[BaseModel],
    key_of: Callable[[Location], str],
    *,
    secrets: Collection[str] = (),
) -> list[Problem]:
    """Convert pydantic's errors to problems. Hides the values of `secrets`."""
    problems: list[Problem] = []
    for item in error.errors(include_url=False):
        location, message = item["loc"], item["msg"].removeprefix("Value error, ")
        if location[-1:] == ("[key]",):  # pydantic's location of a mistake in a mapping's key
            location = location[:-1]
        if item["type"] == "extra_forbidden":
            message = _unknown(str(location[-1]), _known_names(model, location[:-1]))
        elif item["type"] == "missing":
            message = "missing"
        elif set(secrets) & set(location):
            message += ", found a value"
        elif not isinstance(item["input"], dict):
            message += f", found {item['input']!r}"
        problems.append(Problem(message, key_of(location)))
    return problems


def _unknown(name: str, known: Collection[str]) -> str:
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"known here: {', '.join(sorted(known))}"
    return f"unknown setting; {hint}"


def _known_names(model: type[BaseModel], location: Location) -> set[str]:
    """The field names of the section at `location` in `model`."""
    current = model
    for part in location:
        field = current.model_fields.get(str(part))
        if field is None:
            continue  # the name of a subject
        candidates = [field.annotation, *get_args(field.annotation)]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if models:
            current = models[0]
    return {field.alias or name for name, field in current.model_fields.items()}
