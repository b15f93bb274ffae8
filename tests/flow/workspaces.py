"""A whole workspace on tiny models: git, DVC, settings, photos; a run takes seconds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from cli import subjects
from dreambooth_core.workspace import Workspace
from tasks.dvc import Dvc
from tests import tiny_models

REPOSITORY = Path(__file__).parents[2]
SUBJECT = "mug"

_TINY: dict[str, dict[str, Any]] = {
    "data": {"min_side": 64},
    "prior": {"num_class_images": 4, "num_inference_steps": 1, "sample_batch_size": 4},
    "train": {"max_train_steps": 4, "checkpointing_steps": 2, "train_batch_size": 1},
    "evaluate": {"num_inference_steps": 1, "num_class_prompt_images": 4, "bootstrap_samples": 50},
}


def environment(root: Path) -> dict[str, str]:
    """The environment of every process in a workspace: nothing of the user's leaks in."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "GIT_"))}
    own = str(Path(sys.executable).parent)
    return {
        **kept,
        "PATH": f"{own}:{kept.get('PATH', '')}",
        "PYTHONPATH": str(REPOSITORY),
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}",
        "PREFECT_HOME": str(root / ".prefect"),
    }


def build(root: Path, *, subjects: tuple[str, ...] = (SUBJECT,)) -> Workspace:
    """A checkout with tiny models in assets/, photos of each subject, and one commit."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("dvc.yaml", "prefect.yaml", "prefect.toml", ".gitignore", ".dvcignore"):
        shutil.copy(REPOSITORY / name, root / name)
    for name in (".dvc/config", ".dvc/.gitignore"):
        (root / ".dvc").mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    (root / "data" / "instance").mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / "data" / "instance" / ".gitignore", root / "data" / "instance")
    shutil.copytree(REPOSITORY / "infra", root / "infra")
    tiny_models.build_tiny_sd(root / "assets" / "pocket-sd")
    tiny_models.build_tiny_clip(root / "assets" / "pocket-clip")
    tiny_models.build_tiny_dino(root / "assets" / "pocket-dino")
    write_settings(root, subjects)
    for subject in subjects:
        tiny_models.build_photos(root / "data" / "instance" / subject)
    run_in(root, "git", "init", "--quiet")
    for subject in subjects:
        run_in(root, sys.executable, "-m", "dvc", "add", "--quiet", f"data/instance/{subject}")
    run_in(root, "git", "add", ".gitignore", "*.yaml", "*.dvc", ".dvc", "data")
    run_in(
        root,
        *("git", "-c", "user.name=t", "-c", "user.email=t@example.org"),
        *("commit", "--quiet", "-m", "start"),
    )
    return Workspace(root)


def shipped(root: Path) -> Workspace:
    """The settings, DVC and models of this checkout, with git and without photos."""
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(REPOSITORY / name, root)
    (root / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore"):
        shutil.copy(REPOSITORY / name, root / name)
    (root / "assets").symlink_to(REPOSITORY / "assets")
    run_in(root, "git", "init", "--quiet")
    return Workspace(root)


def dvc_of(workspace: Workspace) -> Dvc:
    """DVC in a workspace, as the commands use it."""
    return Dvc(workspace, env=environment(workspace.root))


def with_cup(root: Path) -> Workspace:
    """A shipped project with the subject `cup`, of an example's photos."""
    made = shipped(root)
    new = subjects.NewSubject("cup", class_noun="mug", identifier="sks")
    subjects.add(made, new, REPOSITORY / "examples" / "mug-stripes", dvc_of(made))
    return made


def cup_photos(workspace: Workspace) -> Path:
    """The photos of the subject `cup`."""
    return workspace.root / "data" / "instance" / "cup"


def _small(path: Path) -> Any:
    """The settings of a file, made small."""
    settings = YAML().load(path.read_text())
    for section, fields in _TINY.items():
        settings[section].update(fields)
    settings["compute"]["device"] = "cpu"
    return settings


def make_small(root: Path) -> None:
    """Make the settings of a project small."""
    settings = _small(root / "params.yaml")
    with (root / "params.yaml").open("w") as stream:
        YAML().dump(settings, stream)


def write_settings(root: Path, subjects: tuple[str, ...]) -> None:
    """The shipped settings, made small."""
    yaml = YAML()
    settings = _small(REPOSITORY / "params.yaml")
    settings["subjects"] = {
        subject: {
            "instance_dir": f"data/instance/{subject}",
            "identifier": "sks",
            "class_noun": "mug",
            "prompts": None,
            "overrides": {},
        }
        for subject in subjects
    }
    with (root / "params.yaml").open("w") as stream:
        yaml.dump(settings, stream)


def change(root: Path, key: str, value: Any) -> None:
    """Set one key of params.yaml, such as `train.learning_rate`."""
    yaml = YAML()
    settings = yaml.load((root / "params.yaml").read_text())
    place = settings
    *path, last = key.split(".")
    for part in path:
        place = place[part]
    place[last] = value
    with (root / "params.yaml").open("w") as stream:
        yaml.dump(settings, stream)


def run_in(root: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program in a workspace; with its output in the error when it fails."""
    done = subprocess.run(
        command, cwd=root, env=environment(root), capture_output=True, text=True, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def dvc(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run DVC in a workspace."""
    return run_in(root, sys.executable, "-m", "dvc", *arguments, check=check)


def call(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `dreambooth` in a workspace."""
    return run_in(root, sys.executable, "-m", "cli", *arguments, check=False)


def answer(root: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a successful command prints."""
    done = call(root, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def processes_in(root: Path) -> list[str]:
    """The command lines of other processes that run in a workspace or name it."""
    found = list[str]()
    for process in psutil.process_iter(["cmdline", "cwd", "pid"]):
        words = " ".join(process.info["cmdline"] or ())
        is_here = process.info["cwd"] == str(root) or str(root) in words
        if is_here and process.info["pid"] != os.getpid():
            found.append(words)
    return found


def use_environment(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let flows of this process use the workspace's MLflow store and this checkout's code."""
    for name, value in environment(root).items():
        if name in ("MLFLOW_TRACKING_URI", "PYTHONPATH", "PATH"):
            patch.setenv(name, value)
