"""The words of a subject in params.yaml: what is refused, and how the refusal reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from tests.paths import PARAMS


def loaded(folder: Path, name: str = "mug", **changed: Any) -> config.SubjectSettings:
    """The entry of a subject in the shipped settings with some changes."""
    text = config.remove_entry(PARAMS.read_text(), "subjects", "mug")
    entry = {
        **{"instance_dir": "data/instance/mug", "identifier": "sks", "class_noun": "mug"},
        **{"prompts": None, "overrides": {}},
        **changed,
    }
    path = folder / "params.yaml"
    path.write_text(config.add_entry(text, "subjects", name, entry))
    return config.load_settings(path).subjects[name]


@pytest.mark.parametrize("name", ["a", "my-dog", "my_dog", "x" * 48])
def test_valid_name_is_taken(tmp_path: Path, name: str) -> None:
    assert loaded(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "proposal"),
    [
        ("My Dog", "use my-dog"),
        ("-x", "use x"),
        ("2dogs", "use dogs"),
        ("Café", "use cafe"),
        ("x" * 49, "use " + "x" * 48),
        ("дог", "at most 48 in all, found"),
    ],
)
def test_wrong_name_is_refused_with_a_proposal(tmp_path: Path, name: str, proposal: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, name)
    (problem,) = caught.value.problems
    assert problem.key == f"subjects.{name}"
    assert proposal in problem.text


@pytest.mark.parametrize("noun", ["dog", "teddy bear", "Hündin", "t-shirt", "child's toy"])
def test_valid_class_noun_is_taken(tmp_path: Path, noun: str) -> None:
    assert loaded(tmp_path, class_noun=noun).class_prompt == f"a photo of {noun}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("class_noun", noun) for noun in ("", " dog", "two  spaces", "dog\n", "dog; rm -rf /")),
        *(
            ("class_noun", noun)
            for noun in ("$(id)", "`id`", "dog, cat", "x" * 61, "a" + " b" * 30)
        ),
        *(("identifier", word) for word in ("", "two words", "a\0b", "$HOME", "x" * 61, "a;b")),
        *(("instance_dir", path) for path in ("", " ", ".", "..", "../..", "a\0b", "a\nb")),
        *(("prompts", path) for path in ("", "a\0b")),
    ],
)
def test_wrong_value_is_refused_by_its_key(tmp_path: Path, field: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, **{field: value})
    assert [problem.key for problem in caught.value.problems] == [f"subjects.mug.{field}"]
