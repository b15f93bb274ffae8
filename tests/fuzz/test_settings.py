"""Any settings file is accepted or refused in sentences, never with a traceback."""

from __future__ import annotations

import copy
import functools
import io
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from dreambooth_core.pipeline.common import settings_that_count
from dreambooth_core.workspace import STAGES
from tests.paths import PARAMS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    + ["registry: *a8"]
)
LOOP = "registry: &a {model_name_prefix: *a}"


@functools.cache
def _shipped() -> Any:
    return YAML(typ="safe").load(PARAMS)


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(tree, dict):
        found += [p for key, value in tree.items() for p in _paths(value, (*path, key))]
    return found


_NUMBERS = st.integers() | st.floats() | st.sampled_from((0, -1, 2**63, 1e308, -0.0, 1e-320))
_TEXTS = st.text(max_size=30) | st.sampled_from(
    ("../x", "a\0b", "a\nb", "$(id)", "x" * 300, "мug", "<b>", "null", "1e5", "{{x}}")
)
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS | _NUMBERS, inner),
    max_leaves=6,
)


@st.composite
def changed_settings(draw: st.DrawFn) -> str:
    """The shipped settings with values replaced, removed, added, or moved to the overrides."""
    tree = copy.deepcopy(_shipped())
    for _ in range(draw(st.integers(1, 4))):
        *folder, last = draw(st.sampled_from(_paths(_shipped())))
        place = tree
        for key in folder:
            place = place.get(key) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            continue
        match draw(st.sampled_from(("set", "remove", "add", "override"))):
            case "set":
                place[last] = draw(_VALUES)
            case "remove":
                place.pop(last, None)
            case "add":
                place[draw(_TEXTS)] = draw(_VALUES)
            case _:
                overrides = draw(_VALUES | st.builds(lambda v: {"train": {"seed": v}}, _VALUES))
                subjects = tree.get("subjects")
                if isinstance(subjects, dict) and isinstance(subjects.get("mug"), dict):
                    subjects["mug"]["overrides"] = overrides
    text = io.StringIO()
    YAML(typ="safe").dump(tree, text)
    return text.getvalue()


@st.composite
def damaged_text(draw: st.DrawFn) -> str:
    """The text of the shipped settings with pieces of YAML in odd places."""
    text = PARAMS.read_text()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        piece = draw(st.sampled_from(_PIECES) | st.text(max_size=12))
        text = text[:at] + piece + text[at + draw(st.integers(0, 30)) :]
    return text


_PIECES = (
    *("&a ", "*a", "!!python/object:os.system ", "!!binary ", "<<: *a\n", "? ", "- ", "{", "[["),
    *(": ", "\t", "\n---\n", "\n...\n", "%YAML 1.1\n", "'", '"', "|\n", ">\n", "\0", "﻿"),
    *("2024-13-45", "0o17", "1_000", ".inf", ".nan", "~", "#", "mug:\n", "\r", "\x85", "\u2028"),
)


def _loaded(path: Path) -> tuple[str, list[config.SubjectView]]:
    """The text of a SettingsError, or the settings of each subject."""
    try:
        settings = config.load_settings(path)
        return "", [config.for_subject(settings, name) for name in settings.subjects]
    except SettingsError as error:
        return str(error), []


def _check(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        refused, views = _loaded(path)
    assert len(refused) < 100_000
    for view in views:
        for stage in STAGES:
            config.settings_of(view, stage)
        settings_that_count(view)


@given(text=changed_settings())
def test_any_values_are_accepted_or_refused_in_sentences(text: str) -> None:
    _check(text)


@given(text=damaged_text())
@example(text=BOMB)
@example(text=LOOP)
def test_any_text_is_accepted_or_refused_in_sentences(text: str) -> None:
    _check(text)
