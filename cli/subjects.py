"""Adds a subject: copies its photos, writes its entry to params.yaml, tracks it with DVC."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core import config, files
from dreambooth_core.errors import DataError, SettingsError
from dreambooth_core.workspace import Workspace
from tasks.dvc import Dvc

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,47}$")


@dataclass(frozen=True)
class NewSubject:
    """The name and words that a user chooses for a new subject."""

    name: str
    class_noun: str
    identifier: str


def add(workspace: Workspace, new: NewSubject, images: Path, dvc: Dvc) -> dict[str, Any]:
    """Copy the photos, write the entry, track with DVC; return the copied and skipped files.

    Raises SettingsError for a name that is wrong or taken, DataError without any usable file; then
    nothing has changed.
    """
    settings = config.load_settings(workspace.params)
    _check_name(new.name, settings)
    entry = config.SubjectSettings(
        instance_dir=f"data/instance/{new.name}",
        identifier=new.identifier,
        class_noun=new.class_noun,
        prompts=None,
        overrides={},
    )
    target = workspace.resolve(entry.instance_dir)
    if target.exists():
        raise DataError(
            f"{entry.instance_dir} already exists",
            hint="choose another name, or move that folder away",
        )
    copied, skipped = _copy(images, target)
    try:
        _write_params(workspace, new.name, entry)
    except BaseException:
        shutil.rmtree(target)
        raise
    _write_plot(workspace, new.name)
    dvc.add(entry.instance_dir)
    return {
        "name": new.name,
        "instance_dir": entry.instance_dir,
        "copied": copied,
        "skipped": skipped,
    }


def _check_name(name: str, settings: config.Settings) -> None:
    if not _NAME.match(name):
        raise SettingsError(
            "not a valid name for a subject",
            got=repr(name),
            allowed="a lower-case letter, then lower-case letters, digits and _ (48 at most)",
        )
    if name in settings.subjects:
        raise SettingsError(
            f"the subject {name!r} already exists", hint="choose another name, or edit params.yaml"
        )


def _copy(images: Path, target: Path) -> tuple[list[str], list[str]]:
    """Copy the regular files of a folder; skip links, folders and hidden files.

    DVC cannot track broken links, and the gate would skip all of these anyway.
    """
    if not images.is_dir():
        raise DataError("the folder of photos does not exist", got=str(images))
    entries = sorted(images.iterdir())
    wanted = [p for p in entries if p.is_file() and not p.is_symlink() and p.name[0] != "."]
    if not wanted:
        raise DataError("the folder contains no files", got=str(images))
    with files.atomic_dir(target) as aside:
        for path in wanted:
            shutil.copyfile(path, aside / path.name)
    return [p.name for p in wanted], [p.name for p in entries if p not in wanted]


def _write_params(workspace: Workspace, name: str, entry: config.SubjectSettings) -> None:
    """Add the entry to params.yaml, which is checked before it is replaced."""
    text = workspace.params.read_bytes().decode()
    with files.atomic_file(workspace.params) as aside:
        added = config.add_entry(text, "subjects", name, entry.model_dump(mode="json"))
        aside.write_bytes(added.encode())
        config.load_settings(aside)


def _write_plot(workspace: Workspace, name: str) -> None:
    """Add the plot of the training loss to dvc.yaml: DVC has no loop over plots."""
    path = workspace.root / "dvc.yaml"
    plot = {
        f"work/{name}/train/metrics.csv": {
            "x": "step",
            "y": "loss",
            "title": f"Training loss of {name}",
        }
    }
    if plot not in config.read_yaml(path)["plots"]:
        files.write_text(path, config.add_item(path.read_bytes().decode(), "plots", plot))
