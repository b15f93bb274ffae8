"""`dreambooth init`: a project from the checkout's files, and from the installed wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cli import workspace_setup
from dreambooth_core import config
from dreambooth_core.errors import SettingsError, StageError
from tests.flow import workspaces
from tests.paths import ROOT

NAMES = (ROOT / "cli" / "workspace_files.txt").read_text().split()


def test_project_has_settings_without_subjects_and_dvc_accepts_it(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    made = workspace_setup.init(root)
    assert set(made) == {path.name for path in root.iterdir()}
    settings = config.load_settings(root / "params.yaml")
    assert settings.subjects == {}
    assert (root / settings.base_model.pretrained_model_name_or_path).is_dir()
    assert workspaces.dvc(root, "status", "--json").stdout.strip() == "{}"
    assert workspaces.run_in(root, "git", "status", "--short").stdout


def test_command_without_a_folder_makes_the_project_here(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "cli", "init"]
    subprocess.run(call, cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "params.yaml").is_file()


def test_every_dependency_of_a_stage_is_in_the_project(tmp_path: Path) -> None:
    workspace_setup.init(tmp_path / "mine")
    stages = config.read_yaml(tmp_path / "mine" / "dvc.yaml")["stages"].values()
    fixed = {dep for stage in stages for dep in stage["do"].get("deps", ()) if "${" not in dep}
    assert fixed
    assert [dep for dep in sorted(fixed) if not (tmp_path / "mine" / dep).exists()] == []


def test_deployments_name_the_installed_flows(tmp_path: Path) -> None:
    from prefect.flows import load_flow_from_entrypoint

    workspace_setup.init(tmp_path / "mine")
    deployments = config.read_yaml(tmp_path / "mine" / "prefect.yaml")["deployments"]
    for deployment in deployments:
        flow = load_flow_from_entrypoint(deployment["entrypoint"])
        assert flow.name == deployment["flow_name"]
        assert "mug" not in deployment.get("parameters", {}).values()


def test_folder_with_files_of_a_project_is_refused_unchanged(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("mine\n")
    with pytest.raises(SettingsError, match=r"already has files of a project; found: params\.yaml"):
        workspace_setup.init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="not a folder"):
        workspace_setup.init(tmp_path / "file")
    with pytest.raises(StageError, match="Not a directory"):
        workspace_setup.init(tmp_path / "file" / "below")


def test_repository_is_kept_and_its_gitignore_extended(tmp_path: Path) -> None:
    workspaces.run_in(tmp_path, "git", "init", "--quiet")
    (tmp_path / ".gitignore").write_text("*.tmp\n/work/\n")
    assert ".git" not in workspace_setup.init(tmp_path)
    lines = (tmp_path / ".gitignore").read_text().splitlines()
    assert lines[:2] == ["*.tmp", "/work/"]
    assert lines.count("/work/") == 1
    assert "/.state/" in lines


def _installed(folder: Path) -> Path:
    """The `dreambooth` of a wheel, in an environment that sees the packages of this one."""
    source = folder / "source"
    source.mkdir(parents=True)
    generated = shutil.ignore_patterns("__pycache__", "cache", "tmp")
    names = {Path(name).parts[0] for name in NAMES}
    for name in (*names, *("cli", "dreambooth_core", "flows", "tasks", "README.md", "LICENSE")):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=generated)
        else:
            shutil.copy(ROOT / name, source / name)
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--quiet", "--no-deps", "--no-index"]
    built = [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(built, check=True)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", *offline, str(wheel)], check=True)
    (packages,) = venv.glob("lib/python3*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin" / "dreambooth"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_wheel_makes_a_project_and_trains_a_subject_outside_the_checkout(
    tmp_path: Path, photos: Path
) -> None:
    dreambooth = _installed(tmp_path / "installed")
    root = tmp_path / "project"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments: str, cwd: Path = root) -> None:
        subprocess.run([str(dreambooth), *arguments], cwd=cwd, env=env, check=True)

    run("init", "project", cwd=tmp_path)
    workspaces.make_small(root)
    run("subject", "add", "my-dog", "--class-noun", "dog", "--images", str(photos))
    run("run", "my-dog")
    assert (root / "work" / "my-dog" / "report" / "index.html").is_file()
    python = str(dreambooth.with_name("python"))
    env["PATH"] = f"{dreambooth.parent}:{env['PATH']}"
    status = subprocess.run(
        [python, "-m", "dvc", "status", "--json"],
        cwd=root, env=env, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert status.stdout.strip() == "{}"
