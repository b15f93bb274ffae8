"""infra/stage.sh finds the Python with the project's requirements, activated or not."""

import os
import subprocess
import sys

import pytest

from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT
from tests.paths import ROOT

pytestmark = pytest.mark.timeout(300)

HELP = "usage: python -m dreambooth_core"


def launch(folder, *, path, **more):
    """`infra/stage.sh --help` in a folder; parent and grandparent are shells, not a Python."""
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), **more}
    command = f"/bin/sh -c 'sh {ROOT}/infra/stage.sh --help; exit $?'; exit $?"
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path):
    """A PATH with the shell's programs, a wrong `python`, and a `python3` that answers anything."""
    folder = tmp_path / "bin"
    program(folder / "python", "exit 1")
    program(folder / "python3", "echo False")
    for name in ("sh", "head", "tr"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    return str(folder)


@pytest.mark.parametrize("place", [".venv", "elsewhere"])
def test_environment_that_is_not_on_the_path_is_found(tmp_path, bare, place):
    program(tmp_path / place / "bin" / "python", f'exec {sys.executable} "$@"')
    active = {} if place == ".venv" else {"VIRTUAL_ENV": str(tmp_path / place)}
    done = launch(tmp_path, path=bare, **active)
    assert done.stdout.startswith(HELP), done.stderr


def test_python_on_the_path_is_the_last_resort(tmp_path):
    program(tmp_path / "bin" / "python", f'exec {sys.executable} "$@"')
    path = f"{tmp_path / 'bin'}:{os.defpath}"
    assert launch(tmp_path, path=path).stdout.startswith(HELP)


def test_without_any_such_python_the_message_says_what_to_do(tmp_path, bare):
    done = launch(tmp_path, path=bare)
    assert done.returncode == 1
    assert "no Python here has the requirements" in done.stderr
    assert "`dvc checkout` restores" in done.stderr


def test_own_python_of_dvc_is_found_without_proc(tmp_path, bare):
    """macOS has no /proc, only `ps`."""
    for name in ("ps", "cut"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    text = (ROOT / "infra" / "stage.sh").read_text()
    script = program(tmp_path / "stage.sh", text.replace("/proc/self", "/nowhere"))
    code = f"import subprocess; subprocess.run('sh {script} --help; exit $?', shell=True)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={"PATH": bare, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith(HELP), done.stderr


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_dvc_runs_stages_with_its_own_python_outside_an_environment(tmp_path, bare, shell):
    workspace = workspaces.build(tmp_path / "checkout")
    environment = {**workspaces.environment(workspace.root), "PATH": bare, "SHELL": shell}
    environment.pop("VIRTUAL_ENV", None)  # of the shell that runs the tests
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", f"validate@{SUBJECT}"],
        cwd=workspace.root,
        env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (workspace.stage_dir(SUBJECT, "validate") / "record.json").is_file()
