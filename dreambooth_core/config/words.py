"""The words of a subject: its name, its identifier, its class noun, its folder. Torch-free."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from typing import Annotated, TypeVar

from pydantic import AfterValidator, WithJsonSchema

_T = TypeVar("_T")

_NAME = r"[a-z][a-z0-9_-]{0,47}"
_LETTERS = r"[\w.'’&+-]"
_IDENTIFIER = r"[\w.'’&+<>\[\]*-]{1,60}"
_NOUN = rf"(?=.{{1,60}}$){_LETTERS}+( {_LETTERS}+)*"

_NAME_ALLOWED = "a lower-case letter, then lower-case letters, digits, - and _, at most 48 in all"


def nearest_name(text: str) -> str | None:
    """The valid subject name closest to `text`: `My Dog` gives `my-dog`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9_]+", "-", plain).lstrip("0123456789_-")[:48].rstrip("_-")
    return name or None


def check_name(name: str) -> str:
    """Return a valid subject name. Raises ValueError."""
    if re.fullmatch(_NAME, name):
        return name
    near = nearest_name(name)
    proposal = f"; use {near}" if near else ""
    raise ValueError(f"not a valid name for a subject: {_NAME_ALLOWED}{proposal}")


def _check_identifier(word: str) -> str:
    if len(word.split()) > 1:
        raise ValueError(
            "the identifier is one word, and the words for the kind of thing belong in class_noun"
        )
    if re.fullmatch(_IDENTIFIER, word):
        return word
    raise ValueError("not one word of 1 to 60 letters, digits and . ' & + - _ < > [ ] *")


def _check_noun(noun: str) -> str:
    if re.fullmatch(_NOUN, noun):
        return noun
    raise ValueError(
        "not a noun of 1 to 60 letters, digits and . ' & + - _, with single spaces between words"
    )


def _check_path(path: str) -> str:
    if not path.strip():
        raise ValueError("the path is empty")
    if not path.isprintable():
        raise ValueError("a path contains no control characters")
    return path


def _check_weights(text: str) -> str:
    if text.startswith("models:") and not re.fullmatch(r"models:/[^/@]+(@[\w-]+|/\d+)", text):
        raise ValueError("not a version; use models:/NAME@champion or models:/NAME/3")
    return _check_path(text)


def _check_folder(path: str) -> str:
    parts = PurePosixPath(_check_path(path)).parts
    if not parts or set(parts) <= {".", ".."}:
        raise ValueError("this is the project's folder or one above it, not a folder of photos")
    return path


def check_distinct(subjects: dict[str, _T]) -> dict[str, _T]:
    """Return the subjects. Raises ValueError if two names differ only in - and _.

    The keys of Prefect's artifacts have no underscore, so the names of such a pair would share one.
    """
    known: dict[str, str] = {}
    for name in subjects:
        other = known.setdefault(name.replace("_", "-"), name)
        if other != name:
            raise ValueError(f"the names {other} and {name} differ only in - and _; rename one")
    return subjects


_NAME_SCHEMA = WithJsonSchema({"type": "string", "pattern": f"^{_NAME}$"})
# Without the pattern, in which editors take \w for ASCII letters only.
_WORD_SCHEMA = WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 60})

Name = Annotated[str, AfterValidator(check_name), _NAME_SCHEMA]
Identifier = Annotated[str, AfterValidator(_check_identifier), _WORD_SCHEMA]
Noun = Annotated[str, AfterValidator(_check_noun), _WORD_SCHEMA]
PhotoFolder = Annotated[str, AfterValidator(_check_folder)]
Weights = Annotated[str, AfterValidator(_check_weights)]
SuitePath = Annotated[str, AfterValidator(_check_path)]
