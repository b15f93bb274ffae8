"""Folders of subjects are read in the layout of the paper's data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.data.subject_folders import (
    CLASSES_FILE,
    missing_subjects,
    read_subjects,
    write_classes,
)
from dreambooth_core.errors import DataError

PUBLIC = """Classes

subject_name,class
vase,vase
bear_plushie,stuffed animal
cat2,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
"""


def layout(root: Path, text: str, *folders: str) -> Path:
    (root / CLASSES_FILE).write_text(text)
    for name in folders:
        (root / name).mkdir()
    return root


def test_public_file_of_classes_is_read_in_its_order(tmp_path: Path) -> None:
    root = layout(tmp_path, PUBLIC, "bear_plushie", "vase", ".git")
    found = [(s.name, s.folder, s.class_noun) for s in read_subjects(root)]
    assert found == [
        ("vase", root / "vase", "vase"),
        ("bear_plushie", root / "bear_plushie", "stuffed animal"),
    ]
    assert missing_subjects(root) == ["cat2"]


def test_written_classes_are_read_back(tmp_path: Path) -> None:
    write_classes(tmp_path, {"mug1": "mug", "car1": "car"})
    layout(tmp_path, (tmp_path / CLASSES_FILE).read_text(), "mug1", "car1")
    assert {s.name: s.class_noun for s in read_subjects(tmp_path)} == {"mug1": "mug", "car1": "car"}


@pytest.mark.parametrize(
    ("text", "folders", "said"),
    [
        (PUBLIC, ("vase", "dog"), "dog has no class"),
        (PUBLIC, (), "no folder"),
        ("subject_name,class\nMy Vase,vase\n", ("My Vase",), "use my-vase"),
        ("subject_name,class\nvase\n", ("vase",), "lists no class for every subject; found: vase"),
        ("subject_name,class\nvase,\n", ("vase",), "lists no class for every subject"),
        ("subject_name,class\na,cat\na,dog\n", ("a",), "each subject once"),
        ("vase,vase\n", ("vase",), "0 lines below 'subject_name,class'"),
    ],
)
def test_wrong_layout_is_explained(
    tmp_path: Path, text: str, folders: tuple[str, ...], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_subjects(layout(tmp_path, text, *folders))
    assert said in str(caught.value)


def test_missing_folder_and_missing_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of subjects"):
        read_subjects(tmp_path / "nowhere")
    with pytest.raises(DataError, match="subject_name,class\nbackpack,backpack"):
        read_subjects(tmp_path)
