"""The checks of `dreambooth doctor`: each reports its state, what it found and how to fix it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

from packaging.requirements import Requirement

from cli import server_checks, subject_checks
from cli.finding import Check, check
from dreambooth_core import config
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.workspace import Workspace

_DISTRIBUTION = "dreambooth-pipeline"
_WANTED_GIB = 10.0


def examine(workspace: Workspace, env: Mapping[str, str]) -> list[Check]:
    """Run all checks of this machine and this workspace."""
    probes: list[Callable[[], Iterator[Check]]] = [
        _machine,
        _packages,
        lambda: _disk(workspace),
        lambda: settings(workspace),
        lambda: _repository(workspace),
        lambda: subject_checks.examine(workspace),
        lambda: server_checks.examine(workspace, env),
    ]
    return [finding for probe in probes for finding in probe()]


def _machine() -> Iterator[Check]:
    import torch

    version = platform.python_version()
    wrong = not (3, 11) <= sys.version_info[:2] < (3, 14)
    yield check(
        "Python", version, state="wrong" if wrong else "ok", hint="use 3.11 to 3.13" * wrong
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield check("device", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    else:
        yield check(
            "device",
            f"no GPU; CPU with {torch.get_num_threads()} threads",
            state="warning",
            hint="enough for the pocket models; Stable Diffusion needs a GPU",
        )


def _packages() -> Iterator[Check]:
    """Compare the installed packages with the project's requirements."""
    try:
        wanted = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield check("packages", "not installed", state="wrong", hint="make install")
        return
    wrong: list[str] = []
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}, required {requirement.specifier}")
    state = "wrong" if wrong else "ok"
    yield check("packages", "; ".join(wrong) or "all as required", state=state, hint="make install")


def _disk(workspace: Workspace) -> Iterator[Check]:
    free = shutil.disk_usage(workspace.root).free / 2**30
    state = "ok" if free >= _WANTED_GIB else "warning"
    yield check("free disk", f"{free:.0f} GiB", state=state, hint="dreambooth clean")


def settings(workspace: Workspace) -> Iterator[Check]:
    """Check params.yaml, and whether the models that it names are on this machine."""
    try:
        found = config.load_settings(workspace.params)
        config.check_launches(workspace, found)
    except DreamBoothError as error:
        yield check("params.yaml", str(error), state="wrong", hint="fix the settings named here")
        return
    yield check("params.yaml", f"{len(found.subjects)} subjects")
    places = {
        "base model": found.base_model.pretrained_model_name_or_path,
        "CLIP scorer": found.evaluate.clip,
        "DINO scorer": found.evaluate.dino,
    }
    for what, place in places.items():
        if workspace.resolve(place).is_dir():
            yield check(what, place)
        else:
            where = f"{place} (a hub id or a missing folder)"
            hint = "the first run downloads a hub id, but fails on a missing folder"
            yield check(what, where, state="warning", hint=hint)


def _repository(workspace: Workspace) -> Iterator[Check]:
    there = (workspace.root / ".dvc" / "config").is_file()
    yield check("DVC", "set up" if there else "no .dvc/config", state="ok" if there else "wrong",
                hint="" if there else "dvc init")  # fmt: skip
    if shutil.which("git") is None:
        yield check("git", "not installed", state="wrong", hint="install git")
        return
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=workspace.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if git.returncode == 0:
        yield check("git", f"commit {git.stdout.strip()}")
    else:
        hint = "git init and commit, or `dvc config --local core.no_scm true`"
        yield check("git", "not a repository, or no commit yet", state="wrong", hint=hint)


def repair(workspace: Workspace, env: Mapping[str, str]) -> list[str]:
    """Record this workspace in a MLflow store that was moved or copied; return what was done."""
    from dreambooth_core.registry import tracking

    store = server_checks.store(workspace, env)
    moved = tracking.move_here(store)
    return [f"MLflow: files found in {store.artifact_root}, no longer in {root}" for root in moved]
