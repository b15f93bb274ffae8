"""`run --set`, `--all` and `--stage`, `status`, `--version` and the order of the commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from cli.main import GROUPS, app
from cli.screens import next_commands
from dreambooth_core import config
from dreambooth_core.config.changes import changed_view
from dreambooth_core.errors import SettingsError
from dreambooth_core.pipeline import input_checks
from dreambooth_core.workspace import STAGES, Workspace
from tasks import this_run
from tests.flow import workspaces
from tests.flow.workspaces import answer, call, dvc
from tests.paths import ROOT

pytestmark = pytest.mark.timeout(900)

CHANGE = {"train.max_train_steps": 2}
WRITTEN = ("{}", "{train: {seed: 4}, data: {min_side: 70}}", "\n      train:\n        seed: 4")


@pytest.fixture
def small(tmp_path: Path) -> Workspace:
    """Settings alone."""
    workspaces.write_settings(tmp_path, ("mug", "robot"))
    return Workspace(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A checkout with two subjects; its tests run in order."""
    root = tmp_path_factory.mktemp("options") / "checkout"
    return workspaces.build(root, subjects=("mug", "robot"))


def params(workspace: Workspace) -> bytes:
    return workspace.params.read_bytes()


def with_overrides(workspace: Workspace, text: str) -> None:
    first = "overrides: {}" if text == "{}" else "overrides: {}\n"
    before = workspace.params.read_text()
    block = f"overrides: {text.lstrip(' ')}" + "\n" * (first != "overrides: {}")
    workspace.params.write_text(before.replace(first, block, 1) + "# the end, é\n")


# ---- --set --------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", WRITTEN)
def test_a_change_for_one_run_leaves_every_byte_of_the_settings(
    small: Workspace, written: str
) -> None:
    with_overrides(small, written)
    before, seed = params(small), config.load_view(small, "mug").train.seed
    with this_run.applied(small, "mug", {**CHANGE, "train.lora": None}):
        during = config.load_view(small, "mug")
        assert during.train.max_train_steps == 2
        assert during.train.seed == seed
        assert config.load_view(small, "robot").train.max_train_steps == 4
    assert params(small) == before
    assert not this_run.left_over(small, "mug")


def test_a_failed_run_restores_the_settings(small: Workspace) -> None:
    before = params(small)
    with pytest.raises(KeyboardInterrupt), this_run.applied(small, "mug", CHANGE):
        raise KeyboardInterrupt
    assert params(small) == before


def test_two_runs_at_once_and_an_edit_meanwhile_keep_their_own(small: Workspace) -> None:
    before = small.params.read_text()
    with this_run.applied(small, "mug", CHANGE):
        with this_run.applied(small, "robot", {"select.max_pres_gain": 0.5}):
            text = small.params.read_text()
            small.params.write_text(text.replace("center_crop: true", "center_crop: false"))
        assert config.load_view(small, "mug").train.max_train_steps == 2
    assert small.params.read_text() == before.replace("center_crop: true", "center_crop: false")


def test_the_next_run_takes_back_what_a_killed_one_left(small: Workspace) -> None:
    before = params(small)
    code = (
        "import os, signal; from pathlib import Path; from tasks import this_run\n"
        "from dreambooth_core.workspace import Workspace\n"
        f"with this_run.applied(Workspace(Path({str(small.root)!r})), 'mug', {CHANGE!r}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode < 0
    assert params(small) != before
    assert this_run.left_over(small, "mug")
    with this_run.applied(small, "mug", {}):
        assert params(small) == before


def test_overrides_edited_during_the_run_are_the_users(small: Workspace) -> None:
    with this_run.applied(small, "mug", CHANGE):
        during = "{train: {max_train_steps: 2}}"
        text = small.params.read_text()
        assert text.count(during) == 1
        small.params.write_text(text.replace(during, "{train: {max_train_steps: 3}}"))
    assert config.load_view(small, "mug").train.max_train_steps == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("train.max_train_stpes=2", r"--set: train\.max_train_stpes: .*did you mean"),
        ("train.max_train_steps=many", r"--set: train\.max_train_steps: .*many"),
        ("train.max_train_steps", "--set takes KEY=VALUE"),
        ("compute.device=cpu", r"cannot change compute\.device for one run"),
        ("train=2", "cannot change train for one run"),
        ("train.lora.rank.x=2", r"--set: train\.lora"),
        ("train.seed=[", "not valid YAML"),
    ],
)
def test_a_wrong_change_is_refused_by_its_name(small: Workspace, given: str, message: str) -> None:
    before = params(small)
    with pytest.raises(SettingsError, match=message):
        changed_view(small, "mug", this_run.parse([given]))
    assert params(small) == before


def test_a_run_with_changed_settings_is_recorded_with_them(built: Workspace) -> None:
    before = params(built)
    result = answer(built.root, "run", "mug", "--stage", "validate", "--set", "data.min_side=65")
    assert params(built) == before
    assert result["set"] == {"data.min_side": 65}
    assert [s["stage"] for s in result["stages"]] == ["validate"]
    lock = config.read_yaml(built.root / "dvc.lock")["stages"]["validate@mug"]
    assert lock["params"]["params.yaml"]["subjects.mug.overrides"] == {"data": {"min_side": 65}}
    assert "validate@mug" in json.loads(dvc(built.root, "status", "--json").stdout)
    again = answer(built.root, "run", "mug", "--stage", "validate")
    assert [s["skipped"] for s in again["stages"]] == [False]
    assert "validate@mug" not in json.loads(dvc(built.root, "status", "--json").stdout)


# ---- --all, --stage, status ---------------------------------------------------------------------


def test_status_tells_what_is_done_and_what_would_run(built: Workspace) -> None:
    store, aside = built.root / "mlflow.db", built.root / "mlflow.db.aside"
    store.rename(aside)
    found = answer(built.root, "status")
    mug, robot = found["subjects"]
    assert mug["stages"]["validate"]["state"] == "up to date"
    assert mug["would_run"] == list(STAGES[1:])
    assert mug["last_run"] == mug["stages"]["validate"]["finished"]
    assert (robot["last_run"], robot["would_run"]) == (None, list(STAGES))
    assert (mug["champion"], mug["running"], mug["registry"]) == (None, None, "ok")
    assert found["servers"] == {"prefect": None, "mlflow": None}
    assert not store.exists()
    aside.rename(store)
    text = call(built.root, "status", "mug").stdout
    assert "to bring it up to date: dreambooth run mug" in text
    assert "robot" not in text


def test_status_imports_no_torch(built: Workspace) -> None:
    code = (
        "import sys; from cli.main import run\n"
        "assert run(['status']) == 0; assert 'torch' not in sys.modules"
    )
    workspaces.run_in(built.root, sys.executable, "-c", code)


def test_all_subjects_run_although_one_fails(built: Workspace) -> None:
    for photo in (built.root / "data/instance/mug").iterdir():
        photo.write_bytes(b"no photo")
    done = call(built.root, "run", "--all", "--stage", "validate", "--json")
    assert done.returncode == 1
    results = json.loads(done.stdout)["subjects"]
    assert list(results) == ["mug", "robot"]
    assert results["mug"]["exit_code"] == 2
    assert results["robot"]["stages"][0]["skipped"] is False
    assert "mug failed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "dreambooth run mug"),
        (("mug", "--all"), "got both|found: both"),
        (("mug", "--stage", "trian"), "did you mean train"),
        (("mug", "--stage", "report"), "allowed: validate"),
    ],
)
def test_wrong_orders_are_refused_before_anything_starts(
    built: Workspace, arguments: tuple[str, ...], message: str
) -> None:
    done = call(built.root, "run", *arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr


# ---- what a user is told ------------------------------------------------------------------------


def test_a_class_noun_outside_the_pocket_world_is_named_before_the_run() -> None:
    view = config.load_view(Workspace(ROOT), "mug")
    assert input_checks.warnings(ROOT, view) == []
    dog = view.subject.model_copy(update={"class_noun": "dog"})
    (warning,) = input_checks.warnings(ROOT, view.model_copy(update={"subject": dog}))
    assert warning.startswith("subjects.mug.class_noun: the base model assets/pocket-sd does not")
    assert "'dog'" in warning
    assert "backpack, car, cat, duck, mug, robot, rocket, umbrella" in warning


def test_the_words_of_the_pocket_model_are_those_of_its_judge() -> None:
    judge = json.loads((ROOT / "assets/pocket-classifier/config.json").read_text())
    assert json.loads((ROOT / "assets/pocket-sd/world.json").read_text()) == judge


def test_every_next_command_parses() -> None:
    summary = {
        "subject": "mug",
        "version": {"name": "dreambooth-mug", "version": 3},
        "prompt": "a photo of sks mug",
    }
    known = vars(typer.main.get_command(app))["commands"]
    commands = [line.split("#")[0].split() for line in next_commands(summary)]
    assert [words[1] for words in commands] == ["report", "generate", "compare", "up"]
    assert all(words[1] in known for words in commands)


def test_version_names_project_torch_and_python() -> None:
    done = call(ROOT, "--version")
    assert done.returncode == 0
    project = re.match(r"dreambooth (\S+) \(torch (\S+), Python (\S+)\)$", done.stdout.strip())
    assert project
    assert project[2] == torch.__version__
    assert project[3] == sys.version.split()[0]


def test_help_lists_every_command_in_a_group_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(vars(typer.main.get_command(app))["commands"])
    order = [name for names in GROUPS.values() for name in names if name in known]
    assert known == set(order)
    env = {**os.environ, "COLUMNS": "100"}
    text = subprocess.run(
        [sys.executable, "-m", "cli", "--help"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    positions = [text.index(f"│ {name} ") for name in order]
    assert positions == sorted(positions)
    assert all(title in text for title in GROUPS)
