"""The faster `dvc status` says what DVC itself says."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dreambooth_core.workspace import Workspace
from tasks.dvc import Dvc
from tests.flow.workspaces import dvc, run_in

_DVC_YAML = """
stages:
  train:
    foreach: ${subjects}
    do:
      cmd: echo ${key} > ${key}.txt
      params: [steps, lora, lora.rank, "subjects.${key}.noun", "subjects.${key}.overrides"]
      outs: [{"${key}.txt": {cache: false}}]
"""


def write_settings(root: Path, **changes: object) -> None:
    subjects = {
        "mug": {"noun": "mug", "overrides": {"train": {"steps": [1, 2]}}},
        "dog": {"noun": "dog", "overrides": {}},
        "cat": {"noun": "cat", "overrides": {}},
    }
    settings = {"steps": 4, "lora": {"rank": 8}, "subjects": subjects, **changes}
    (root / "params.yaml").write_text(json.dumps(settings))


def test_changed_and_missing_settings_are_those_of_dvc(tmp_path: Path) -> None:
    run_in(tmp_path, "git", "init", "--quiet")
    dvc(tmp_path, "init", "--quiet")
    (tmp_path / "tasks").mkdir()  # a user's own
    (tmp_path / "tasks" / "__init__.py").write_text("")
    (tmp_path / "dvc.yaml").write_text(_DVC_YAML)
    write_settings(tmp_path)
    dvc(tmp_path, "repro", "--quiet")
    own = Dvc(Workspace(tmp_path), env=os.environ)
    assert own.status() == {}
    subjects = {
        "mug": {"noun": "cup", "overrides": {"train": {"steps": [1, 3]}}},
        "dog": {"noun": "dog"},
        "cat": {"noun": "cat", "overrides": {}},
    }
    write_settings(tmp_path, lora=None, subjects=subjects)
    found = own.status()
    assert found == json.loads(dvc(tmp_path, "status", "--json").stdout)
    assert set(found) == {"train@mug", "train@dog", "train@cat"}
