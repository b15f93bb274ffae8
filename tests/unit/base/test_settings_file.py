"""Changes of single settings: byte by byte, checked, and next to other people's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cli import settings_file
from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace
from tests.paths import PARAMS


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    return Workspace(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("train.max_train_steps", 100, "  max_train_steps: 100  # Number"),
        ("train.learning_rate", 1e-5, "  learning_rate: 1e-05  # Peak"),
        ("train.max_grad_norm", None, "  max_grad_norm: null  # Clip"),
        ("train.lora.lora_layers", ["to_k", "to_q"], "    lora_layers: [to_k, to_q]  # U-Net"),
        ("data.background", "#000000", "  background: '#000000'  # Colour"),
        ("data.captions", True, "  captions: true  # Use"),
    ],
)
def test_saved_value_changes_its_line_alone(
    workspace: Workspace, key: str, value: Any, line: str
) -> None:
    before = workspace.params.read_text().splitlines()
    settings_file.save(workspace, {key: value})
    after = workspace.params.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    assert changed[0][1].startswith(line)
    assert config.flatten(config.read_yaml(workspace.params))[key] == value


@pytest.mark.parametrize("key", ["prior", "train.lora"])
def test_section_is_one_line_while_it_is_off(workspace: Workspace, key: str) -> None:
    before = workspace.params.read_text()
    values = config.read_yaml(workspace.params)
    for part in key.split("."):
        values = values[part]
    settings_file.save(workspace, {key: None})
    assert config.flatten(config.read_yaml(workspace.params))[key] is None
    off = workspace.params.read_text().splitlines()
    assert set(off) - set(before.splitlines()) == {
        line.replace(":", ": null", 1)
        for line in before.splitlines()
        if line.lstrip().startswith(f"{key.rpartition('.')[2]}:")
    }
    settings_file.save(workspace, {key: values})
    assert config.read_yaml(workspace.params) == config.parse_yaml(before)
    after = workspace.params.read_text().splitlines()
    assert [line.partition("#")[2] for line in after] == [
        line.partition("#")[2] for line in before.splitlines()
    ]


def test_setting_that_the_file_lacks_is_added(workspace: Workspace) -> None:
    text = workspace.params.read_text()
    lines = [line for line in text.splitlines(keepends=True) if "  captions:" not in line]
    workspace.params.write_text("".join(lines))
    settings_file.save(workspace, {"data.captions": True})
    assert config.load_settings(workspace.params).data.captions


def test_wrong_value_is_reported_at_its_key_and_not_saved(workspace: Workspace) -> None:
    before = workspace.params.read_bytes()
    wrong = {"train.max_train_steps": -1, "train.method": "all", "data.captions": True}
    found = settings_file.problems_of(workspace, wrong)
    assert {problem.key for problem in found} == {"train.max_train_steps", "train.method"}
    with pytest.raises(SettingsError):
        settings_file.save(workspace, wrong)
    assert workspace.params.read_bytes() == before


def test_two_changes_of_different_settings_both_stay(workspace: Workspace) -> None:
    settings_file.save(workspace, {"train.max_train_steps": 100})
    settings_file.save(workspace, {"train.checkpointing_steps": 20})
    train = config.load_settings(workspace.params).train
    assert (train.max_train_steps, train.checkpointing_steps) == (100, 20)
