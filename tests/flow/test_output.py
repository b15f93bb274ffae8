"""What commands print: JSON that parses, YAML as in the file, tables that hide nothing."""

import json
import sys

import pytest
from rich.console import Console

from cli import screens
from tests.flow import workspaces
from tests.paths import ROOT

PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def command(*arguments):
    return workspaces.run_in(ROOT, sys.executable, "-m", "cli", *arguments, check=False)


def test_wrong_subject_is_one_json_object_and_exit_code_2():
    ended = command("run", "nosuch", "--json")
    assert ended.returncode == 2
    error = json.loads(ended.stdout)["error"]
    assert error["what"] == "no subject has the name 'nosuch'"
    assert set(error) == {"what", "allowed", "hint"}
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", PRESETS)
def test_preset_show_prints_the_bytes_of_the_file(name):
    shown = command("preset", "show", name)
    assert shown.stdout == (ROOT / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def test_comparison_of_versions_cuts_no_text(capsys):
    verdict = "challenger stays: " + "x" * 150 + "END"
    version = {
        "version": 3,
        "aliases": [],
        "scores": {"dino": 0.5},
        "tags": {"verdict": verdict},
        "settings": {},
    }
    screens.show_versions(Console(width=80), [version])
    lines = [
        line.split("\u2502")[2].strip()
        for line in capsys.readouterr().out.splitlines()
        if "\u2502" in line
    ]
    assert verdict.replace(" ", "") in "".join(lines).replace(" ", "")
