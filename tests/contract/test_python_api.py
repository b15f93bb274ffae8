"""The Python API: light, typed, documented, and used by a notebook that runs as it is."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dreambooth_core
from dreambooth_core import api
from dreambooth_core.errors import SettingsError
from tests.flow import workspaces
from tests.paths import ROOT

NOTEBOOK = ROOT / "examples" / "python.ipynb"
HEAVY = ("torch", "diffusers", "transformers", "mlflow", "pydantic")


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_importing_the_package_imports_no_library() -> None:
    code = f"import dreambooth_core, sys; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_load_without_torch() -> None:
    code = (
        "import sys; from dreambooth_core import load_settings, read_scores, run_stage\n"
        f"print(load_settings('mug', workspace={str(ROOT)!r}).name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mug", "False"]


def test_the_package_offers_and_documents_what_the_api_defines() -> None:
    assert dreambooth_core.__all__ == api.__all__
    assert (Path(dreambooth_core.__file__).parent / "py.typed").is_file()
    page = (ROOT / "docs" / "python.md").read_text()
    named = set(re.findall(r"^\| `(\w+)\(", page, re.MULTILINE))
    assert named == set(api.__all__)
    for name in api.__all__:
        function = getattr(dreambooth_core, name)
        assert function.__doc__
        parameters = inspect.signature(function).parameters.values()
        assert all(parameter.annotation is not parameter.empty for parameter in parameters)


def test_an_unknown_stage_or_subject_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean train"):
        dreambooth_core.run_stage("mug", "trian", workspace=ROOT)
    with pytest.raises(SettingsError, match="did you mean mug"):
        dreambooth_core.load_settings("mugg", workspace=ROOT)
    with pytest.raises(SettingsError, match=r"no params\.yaml"):
        dreambooth_core.load_settings("mug", workspace=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num": 0, "seed": -1, "steps": 2.5}, r"(?s)num: .*seed: .*steps: "),
        ({"prompt": " "}, "prompt: "),
        ({"guidance": float("nan")}, "guidance: "),
        ({"num": True}, "num: "),
        ({"model": None}, "model is not text"),
        ({"workspace": None}, "workspace is not a path"),
    ],
)
def test_wrong_arguments_of_generate_are_refused(wrong: dict[str, object], said: str) -> None:
    arguments = {"model": "mug", "prompt": "a mug", "workspace": ROOT, **wrong}
    with pytest.raises(SettingsError, match=said):
        dreambooth_core.generate(**arguments)


def test_unknown_subject_leaves_no_file_and_is_refused_by_every_function(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    calls = (
        lambda name: dreambooth_core.run_stage(name, "validate", workspace=tmp_path),
        lambda name: dreambooth_core.read_scores(name, workspace=tmp_path),
        lambda name: dreambooth_core.read_selection(name, workspace=tmp_path),
        lambda name: dreambooth_core.load_settings(name, workspace=tmp_path),
    )
    for call in calls:
        with pytest.raises(SettingsError, match="did you mean mug"):
            call("mugg")
        with pytest.raises(SettingsError):
            call(3)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("name", ["tpu", "cuda:99"])
def test_device_that_is_not_there_is_refused(name: str) -> None:
    from dreambooth_core.models import load

    with pytest.raises(SettingsError, match="cannot be used here"):
        load.named_device(name)


def test_the_notebook_holds_no_outputs_and_only_names_of_the_api() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    nodes = [node for cell in code_cells() for node in ast.walk(ast.parse(cell))]
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "dreambooth"
    }
    assert used == set(api.__all__)


@pytest.mark.timeout(900)
def test_the_notebook_runs_from_photos_to_images(tmp_path: Path) -> None:
    workspace = workspaces.build(tmp_path / "checkout")
    folder = workspace.root / "examples"
    folder.mkdir()
    shutil.copy(NOTEBOOK, folder)
    runner = folder / "cells.py"
    checks = "assert [i.size for i in images] == [(64, 64)] * 2 and newest.version.version == 1"
    runner.write_text("\n".join([*code_cells(), checks, 'print("done")']))
    env = workspaces.environment(workspace.root)
    env.pop("MLFLOW_TRACKING_URI")  # the workspace's own store, without being told
    done = subprocess.run(
        [sys.executable, runner.name],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "done"
    assert "register ModelVersion" in done.stdout
    assert (workspace.root / "mlflow.db").is_file()
