"""A write to params.yaml changes what was asked for, and no other byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cli import presets, subjects
from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace
from tasks.dvc import Dvc
from tests.flow import workspaces
from tests.unit.base.test_config import ROOT

ENTRY = {"identifier": "sks", "prompts": None, "overrides": {}}
ADDED = "cup:\n    identifier: sks\n    prompts: null\n    overrides: {}\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for name in ("presets", "infra"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return Workspace(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: null\nsubjects: {}\n", "a: null\nsubjects:\n  " + ADDED),
        ("subjects: {} # mine\nb: ~\n", "subjects: # mine\n  " + ADDED + "b: ~\n"),
        (
            "subjects:\n  mug:\n    p:\n# end\n",
            "subjects:\n  mug:\n    p:\n  " + ADDED + "# end\n",
        ),
        ("subjects:\n  mug: {p: 1} # x", "subjects:\n  mug: {p: 1} # x\n  " + ADDED),
        (
            "subjects: {mug: {p: null}} # x\n",
            "subjects: {mug: {p: null}, "
            "cup: {identifier: sks, prompts: null, overrides: {}}} # x\n",
        ),
        (
            "subjects:\r\n  mug:\r\n    p: null\r\nb: 1\r\n",
            "subjects:\r\n  mug:\r\n    p: null\r\n  " + ADDED.replace("\n", "\r\n") + "b: 1\r\n",
        ),
    ],
)
def test_entry_is_appended_and_no_other_byte_changes(before: str, after: str) -> None:
    assert config.add_entry(before, "subjects", "cup", ENTRY) == after
    assert config.parse_yaml(after)["subjects"]["cup"] == ENTRY


def test_new_subject_only_adds_lines(workspace: Workspace, photos: Path) -> None:
    text = workspace.params.read_text().replace("seed: 42", "seed:   42  # the answer")
    workspace.params.write_text(text)
    root = workspace.root
    plots = (root / "dvc.yaml").read_text()
    env = workspaces.environment(root)
    workspaces.dvc(root, "init", "--no-scm", "--quiet")
    new = subjects.NewSubject("cup", "cup", "sks")
    subjects.add(workspace, new, photos, Dvc(workspace, env=env))
    assert workspace.params.read_text() == (
        text + "  cup:\n    instance_dir: data/instance/cup\n    identifier: sks\n"
        "    class_noun: cup\n    prompts: null\n    overrides: {}\n    choice: null\n"
    )
    assert (root / "dvc.yaml").read_text() == (
        plots + "  - work/cup/train/metrics.csv:\n      x: step\n      y: loss\n"
        "      title: Training loss of cup\n"
    )


REMOVALS = [
    ("subjects:\n  # a\n  a: {}\n  b:\n    p:\n# end\n", "subjects:\n  # a\n  b:\n    p:\n# end\n"),
    ("subjects: # s\n  # a\n  a: {p: 1} # x\nb: ~\n", "subjects: {} # s\n  # a\nb: ~\n"),
    ("subjects:\r\n  a:\r\n    p: 1\r\nb: 2\r\n", "subjects: {}\r\nb: 2\r\n"),
    ("subjects: {b: {}, a: {p: 1}, c: {}} # z\n", "subjects: {b: {}, c: {}} # z\n"),
    ("subjects: {a: {p: 1}, c: {}} # z\n", "subjects: {c: {}} # z\n"),
    ("subjects: {a: {}}\n", "subjects: {}\n"),
    ("subjects:\n  b: {}\n  a:\n    p: null", "subjects:\n  b: {}\n"),
]


@pytest.mark.parametrize(("before", "after"), REMOVALS)
def test_entry_is_removed_and_no_other_byte_changes(before: str, after: str) -> None:
    assert config.remove_entry(before, "subjects", "a") == after
    expected = config.parse_yaml(before)
    del expected["subjects"]["a"]
    assert config.parse_yaml(after) == expected


def test_item_of_a_list_is_removed_once_and_only_if_present() -> None:
    text = "plots:\n  - a: {x: 1}\n  - b:\n      x: 1\nend: 1\n"
    only_a = config.remove_item(text, "plots", {"b": {"x": 1}})
    assert only_a == "plots:\n  - a: {x: 1}\nend: 1\n"
    assert config.remove_item(only_a, "plots", {"b": {"x": 1}}) == only_a
    assert config.remove_item(only_a, "plots", {"a": {"x": 1}}) == "plots: []\nend: 1\n"


def test_preset_is_written_byte_for_byte_around_the_subjects(workspace: Workspace) -> None:
    """Comments and spellings of both files stay: `null`, quotes, exponents."""
    before, mine = workspace.params.read_text().split("subjects:\n")
    mine = mine.replace("prompts: null", "prompts: ~  # none yet")
    workspace.params.write_text(f"{before}subjects:\n{mine}# end\n")
    presets.use(workspace, "sd14-6gb")
    preset = (workspace.root / "presets" / "sd14-6gb.yaml").read_text()
    expected = preset.replace("subjects: {}\n", f"subjects:\n{mine}# end\n")
    schema = before.splitlines(keepends=True)[0]
    assert schema == "# yaml-language-server: $schema=presets/params.schema.json\n"
    assert workspace.params.read_text() == schema + expected


def test_preset_keeps_higher_version_without_other_changes(workspace: Workspace) -> None:
    text = workspace.params.read_text()
    workspace.params.write_text(text.replace("  cache: 3 ", "  cache: 12 "))
    presets.use(workspace, "pocket")
    changed = presets.use(workspace, "pocket")
    assert changed == []
    preset = (workspace.root / "presets" / "pocket.yaml").read_text()
    expected = preset.replace("  cache: 3 ", "  cache: 12 ")
    written = workspace.params.read_text().partition("\n")[2]  # without the editors' line
    assert written.partition("subjects:")[0] == expected.partition("subjects:")[0]


def test_edit_of_a_file_without_the_section_is_refused() -> None:
    with pytest.raises(SettingsError, match="subjects: missing"):
        config.add_entry("a: 1\n", "subjects", "cup", ENTRY)


@pytest.mark.parametrize(
    "text",
    [
        "a: 2024-13-45",
        "a: !!int x",
        "a: !!bool x",
        "a: " + "9" * 5000,
        "a: " * 3,
        "a: " + "[" * 5000,
    ],
)
def test_text_that_is_no_yaml_is_a_settings_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"^params.yaml is not valid YAML; found: "):
        config.read_yaml(tmp_path / "params.yaml")


def test_file_that_is_not_utf_8_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes("a: \u00fc".encode("utf-16"))
    with pytest.raises(SettingsError, match=r"^params.yaml is not UTF-8 text"):
        config.read_yaml(tmp_path / "params.yaml")


CHOICE = {"step": 4, "when": "2026-11-29T10:00:00+00:00"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a:\n  m:\n    c: null  # why\n", 'a:\n  m:\n    c: {step: 4, when: "%s"}  # why\n'),
        ("a:\n  m:\n    c:\n  n: 2\n", 'a:\n  m:\n    c: {step: 4, when: "%s"}\n  n: 2\n'),
        ("a:\n  m:\n    c:  # why\nb: 1", 'a:\n  m:\n    c: {step: 4, when: "%s"}  # why\nb: 1'),
        ("a:\n  m:\n    c: {step: 2}\nb: 1\n", 'a:\n  m:\n    c: {step: 4, when: "%s"}\nb: 1\n'),
        (
            "a:\n  m:\n    p: 1\n  n: 2\n",
            'a:\n  m:\n    p: 1\n    c: {step: 4, when: "%s"}\n  n: 2\n',
        ),
        ("a: {m: {p: 1}}\n", 'a: {m: {p: 1, c: {step: 4, when: "%s"}}}\n'),
    ],
)
def test_value_is_set_at_a_key_that_is_there_or_missing(before: str, after: str) -> None:
    keys = ("a", "m", "c")
    text = config.set_value(before, keys, CHOICE)
    assert text == after % CHOICE["when"]
    assert config.parse_yaml(text)["a"]["m"]["c"] == CHOICE
    assert config.parse_yaml(config.set_value(text, keys, None))["a"]["m"]["c"] is None
