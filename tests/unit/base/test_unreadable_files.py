"""A folder where a file belongs is an error for users, wherever a file is read."""

import subprocess
import sys

import pytest

from cli import doctor, presets
from dreambooth_core import config
from dreambooth_core.config import launching
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.models import source
from dreambooth_core.records import Manifest
from dreambooth_core.workspace import Workspace
from tests.paths import ROOT

READERS = {
    "yaml": config.read_yaml,
    "record": lambda path: Manifest.read(path.parent, path.name),
    "model": lambda path: source.read_json_file(path, what="a model"),
    "deepspeed": launching.read_deepspeed,
    "preset": lambda path: presets.list_all(Workspace(path.parent.parent)),
}


@pytest.mark.parametrize("reader", READERS)
def test_folder_in_place_of_a_file_names_itself(tmp_path, reader):
    path = tmp_path / "presets" / "sdxl.yaml"
    path.mkdir(parents=True)
    with pytest.raises(DreamBoothError, match=r"sdxl.yaml cannot be read; found: Is a directory"):
        READERS[reader](path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train-worker", "/"), "cannot be read; found: Is a directory"),
        (("trian", "--subject", "mug"), "what to do: did you mean train?"),
        (("Evaluate",), "what to do: did you mean evaluate?"),
        (("train-node", "--subject", "mug", "--wait-min", "nan"), "invalid minutes value: 'nan'"),
    ],
)
def test_mistake_in_a_stage_command_is_one_sentence(arguments, said):
    ended = subprocess.run(
        [sys.executable, "-m", "dreambooth_core", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode in (1, 2)


def test_doctor_without_git_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {each["what"]: each for each in doctor._repository(Workspace(tmp_path))}
    assert (found["git"]["found"], found["git"]["state"]) == ("not installed", "wrong")
