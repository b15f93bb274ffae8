"""`dreambooth subject rename`: everything gets the new name, or nothing; no stage runs again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cli import renaming, subjects
from dreambooth_core import config, locks
from dreambooth_core.errors import RegistryError, SettingsError, StageError
from dreambooth_core.registry import aliases, versions
from dreambooth_core.registry.tracking import connect, resolve_tracking
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces
from tests.flow.test_subjects import DOG, command, content, dvc_of, workspace

_ = workspace  # the fixture


@pytest.fixture
def project(workspace: Workspace, photos: Path) -> Workspace:
    """A project with the subject my-dog, whose line in params.yaml has a comment."""
    subjects.add(workspace, DOG, photos, dvc_of(workspace))
    text = workspace.params.read_text().replace("  my-dog:\n", "  my-dog:  # the old one\n")
    workspace.params.write_text(text)
    for folder in (workspace.places("my-dog").outputs, workspace.run_log("my-dog").parent):
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("of my-dog")
    return workspace


def rename(workspace: Workspace, old: str, new: str) -> dict[str, object]:
    env = workspaces.environment(workspace.root)
    return renaming.rename(workspace, old, new, dvc=dvc_of(workspace), env=env)


def test_new_name_is_everywhere_and_comments_stay(project: Workspace) -> None:
    before = content(project)
    assert rename(project, "my-dog", "rex")["instance_dir"] == "data/instance/rex"
    text = project.params.read_text()
    assert "  rex:  # the old one\n    instance_dir: data/instance/rex\n" in text
    assert "my-dog" not in text + (project.root / "dvc.yaml").read_text()
    assert workspaces.dvc(project.root, "status", "data/instance/rex.dvc").returncode == 0
    assert not [name for name in content(project) if "my-dog" in name]
    assert (project.run_log("rex").parent / "notes.txt").is_file()
    rename(project, "rex", "my-dog")
    assert content(project) == before


def test_photos_in_a_folder_of_the_user_stay_there(project: Workspace, photos: Path) -> None:
    text = project.params.read_text()
    project.params.write_text(text.replace("data/instance/my-dog", str(photos)))
    before = sorted(photos.iterdir())
    assert rename(project, "my-dog", "rex")["instance_dir"] == str(photos)
    assert sorted(photos.iterdir()) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("my-dog", "My Dog", "use my-dog"),
        ("my-dog", "../x", "not a valid name"),
        ("my-dog", "mug", "the subject 'mug' already exists"),
        ("my-dog", "my-dog", "the subject 'my-dog' already exists"),
        ("mug", "my_dog", "the names my_dog and my-dog differ only in - and _"),
        ("my-dog", "used", "work/used already exists"),
        ("my-dgo", "rex", "my-dog"),
    ],
)
def test_wrong_name_is_one_sentence_and_changes_nothing(
    project: Workspace, old: str, new: str, message: str
) -> None:
    project.places("used").outputs.mkdir()
    before = content(project)
    with pytest.raises(SettingsError) as caught:
        rename(project, old, new)
    assert message in str(caught.value)
    assert content(project) == before


@pytest.mark.parametrize("busy", ["my-dog", "rex"])
def test_rename_is_refused_while_a_run_is_in_progress(project: Workspace, busy: str) -> None:
    with locks.hold(project.subject_lock(busy), timeout_s=1):
        done = command(project, "rename", "my-dog", "rex")
    assert done.returncode == StageError.exit_code
    assert f"a run of {busy} is in progress" in done.stderr
    assert "`dreambooth subject rename my-dog rex`" in done.stderr


def test_error_in_the_middle_leaves_everything_as_it_was(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device", "dvc.yaml")

    before = content(project)
    monkeypatch.setattr(renaming, "_renamed_plot", fail)
    with pytest.raises(StageError, match="nothing has changed; found: No space left on device"):
        rename(project, "my-dog", "rex")
    assert content(project) == before
    assert not project.renaming("my-dog").exists()


def test_killed_rename_is_finished_by_the_same_command(project: Workspace) -> None:
    script = """
import os
from pathlib import Path
from cli import renaming
from dreambooth_core.workspace import Workspace
from tasks.dvc import Dvc
renaming._renamed_plot = lambda *_: os._exit(9)
workspace, env = Workspace(Path.cwd()), dict(os.environ)
renaming.rename(workspace, "my-dog", "rex", dvc=Dvc(workspace, env=env), env=env)
"""
    killed = workspaces.run_in(project.root, sys.executable, "-c", script, check=False)
    assert killed.returncode == 9, killed.stderr
    run = workspaces.run_in(project.root, sys.executable, "-m", "cli", "run", "my-dog", check=False)
    assert "what to do: dreambooth subject rename my-dog rex" in run.stderr
    done = command(project, "rename", "my-dog", "rex")
    assert done.returncode == 0, done.stderr
    assert list(config.load_settings(project.params).subjects) == ["mug", "rex"]
    assert not [name for name in content(project) if "my-dog" in name]
    assert not project.renaming("my-dog").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trained_subject_runs_no_stage_again_and_keeps_its_champion(tmp_path: Path) -> None:
    project = workspaces.build(tmp_path / "project")
    call = (sys.executable, "-m", "cli")
    workspaces.run_in(project.root, *call, "run", "mug")
    tracking = resolve_tracking(project)
    lock = (project.root / "dvc.lock").read_text()
    before = {n: h for n, h in content(project).items() if not n.startswith("mlflow.db")}
    assert rename(project, "mug", "cup")["model"] == "dreambooth-cup"
    plan = json.loads(workspaces.run_in(project.root, *call, "plan", "cup", "--json").stdout)
    assert {stage for stage, does in plan["stages"].items() if does == "run"} == {"report"}
    assert "mug" not in (project.root / "dvc.lock").read_text().replace("noun: mug", "")
    champion = aliases.champion(tracking, name="dreambooth-cup")
    assert champion is not None
    assert champion.version.version == 1
    assert connect(tracking).get_experiment_by_name("dreambooth-mug") is None
    rename(project, "cup", "mug")
    assert (project.root / "dvc.lock").read_text() == lock
    assert {n: h for n, h in content(project).items() if not n.startswith("mlflow.db")} == before
    rename(project, "mug", "cup")
    run = workspaces.run_in(project.root, *call, "run", "cup", "--json")
    assert json.loads(run.stdout)["version"]["name"] == "dreambooth-cup"
    assert len(versions.list_versions(tracking, name="dreambooth-cup")) == 1
    connect(tracking).create_registered_model("dreambooth-taken")
    with pytest.raises(RegistryError, match="already has the model dreambooth-taken"):
        rename(project, "cup", "taken")
