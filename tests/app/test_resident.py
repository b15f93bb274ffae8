"""Commands that run one after another in one process answer as they do in their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flow import workspaces
from tests.paths import ROOT


@pytest.fixture
def resident(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "cli.resident", *getattr(request, "param", ())],
        cwd=ROOT,
        env=workspaces.environment(ROOT),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def ask(process: subprocess.Popen[str], *words: str) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(words) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def num_open(process: subprocess.Popen[str]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def test_each_command_answers_alone_and_leaves_nothing_open(resident) -> None:
    first = ask(resident, "settings", "train.seed", "--json")
    wrong = ask(resident, "settings", "train.sed", "--json")
    usage = ask(resident, "settings", "--nonsense")
    files = num_open(resident)
    again = ask(resident, "settings", "train.seed", "--json")
    assert first == again
    assert json.loads(first["output"])["settings"][0]["key"] == "train.seed"
    assert json.loads(wrong["output"])["error"]["what"].startswith("no setting has")
    assert (first["exit_code"], wrong["exit_code"], usage["exit_code"]) == (0, 2, 2)
    assert usage["output"] == ""
    assert "No such option" in usage["messages"]
    assert num_open(resident) == files


@pytest.mark.parametrize("resident", [["cli.generation"]], indirect=True)
def test_modules_are_imported_before_the_first_command(resident) -> None:
    answer = ask(resident, "settings", "train.seed", "--json")  # waits for the imports
    assert json.loads(answer["output"])["settings"][0]["key"] == "train.seed"
    assert "libtorch_cpu" in Path(f"/proc/{resident.pid}/maps").read_text()


def test_resident_ends_with_its_input(resident) -> None:
    assert resident.stdin is not None
    resident.stdin.close()
    assert resident.wait(timeout=60) == 0
