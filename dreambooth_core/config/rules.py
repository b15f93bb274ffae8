"""Rules across the fields of a section: all that are broken are told, beside fields that are wrong.

Pydantic asks for what holds between fields only when every field is right; then a user who has
mended a field meets the next error. Here a rule that looks at right fields alone is asked anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails

from dreambooth_core.config.reading import mapping

_Section = TypeVar("_Section", bound=BaseModel)

Rule = tuple[Callable[[Any], bool], str]
"""Whether a section's values break it, and the sentence that says so; `{0.name}` is a value."""


def broken(rules: Sequence[Rule], values: Any) -> list[str]:
    """The sentences of all rules that the values break."""
    return [sentence.format(values) for is_broken, sentence in rules if is_broken(values)]


def checked(
    section: type[_Section],
    values: Any,
    handler: Callable[[Any], _Section],
    rules: Sequence[Rule],
) -> _Section:
    """What a `wrap` validator returns. Raises ValidationError with all wrong fields and rules."""
    try:
        made = handler(values)
    except ValidationError as error:
        wrong = [cast(InitErrorDetails, dict(item)) for item in error.errors(include_url=False)]
        sentences = list(_broken_of_some(rules, _Some(section, values, wrong)))
        raise _error(section, [*wrong, *_details(sentences, values)]) from None
    if sentences := broken(rules, made):
        raise _error(section, _details(sentences, values))
    return made


class _UnknownValueError(Exception):
    """A rule looks at a field that is itself wrong."""


class _Some:
    """The values of those fields that are right, as the section would have them."""

    def __init__(
        self, section: type[BaseModel], values: Any, wrong: Sequence[InitErrorDetails]
    ) -> None:
        given = mapping(values)
        bad = {str(place) for item in wrong for place in item.get("loc", ())[:1]}
        self._known: dict[str, Any] = {}
        for name, field in section.model_fields.items():
            if name in bad:
                continue
            adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, field.annotation))
            is_given = name in given
            self._known[name] = (
                adapter.validate_python(given[name]) if is_given else field.get_default()
            )

    def __getattr__(self, name: str) -> Any:
        if name not in self._known:
            raise _UnknownValueError(name)
        return self._known[name]


def _broken_of_some(rules: Sequence[Rule], some: _Some) -> Iterator[str]:
    for rule in rules:
        try:
            yield from broken([rule], some)
        except _UnknownValueError:
            continue


def _details(sentences: Sequence[str], values: Any) -> list[InitErrorDetails]:
    return [
        {"type": "value_error", "loc": (), "input": values, "ctx": {"error": ValueError(sentence)}}
        for sentence in sentences
    ]


def _error(section: type[BaseModel], details: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data(section.__name__, details)
