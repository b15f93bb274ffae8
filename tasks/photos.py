"""The photos of a subject under DVC, and restoring missing ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dreambooth_core import config, files
from dreambooth_core.config import SubjectView
from dreambooth_core.errors import DataError, StageError
from dreambooth_core.workspace import Workspace
from tasks.dvc import Dvc


def pointer_of(instance_dir: Path) -> Path:
    """The .dvc file that tracks a folder of photos."""
    return instance_dir.with_name(f"{instance_dir.name}.dvc")


def tracked_pointer(workspace: Workspace, settings: SubjectView) -> str | None:
    """The .dvc file of a subject's photos, as DVC names it; None if DVC does not track them."""
    pointer = pointer_of(workspace.resolve(settings.subject.instance_dir))
    if not pointer.is_file() or not pointer.is_relative_to(workspace.root):
        return None
    return pointer.relative_to(workspace.root).as_posix()


def restore(workspace: Workspace, settings: SubjectView, dvc: Dvc) -> bool:
    """Restore a subject's missing photos; return False if none are missing.

    They come from the shipped examples, DVC's cache or its remote, else this raises DataError.
    """
    subject = settings.name
    folder = workspace.resolve(settings.subject.instance_dir)
    if folder.is_dir():
        return False
    pointer = pointer_of(folder)
    if not pointer.is_file():
        raise DataError(
            f"the photos of {subject} are missing",
            got=f"no folder {folder} (subjects.{subject}.instance_dir)",
            hint="put 3 to 6 photos there, or name their folder in params.yaml",
        )
    target = pointer.relative_to(workspace.root).as_posix()
    if _copy_example(workspace, folder, pointer):
        return True
    try:
        dvc.fetch(target)
    except StageError as error:
        raise DataError(
            f"the photos of {subject} are missing, also in DVC's cache and remote",
            got=error.got,
            hint=f"run `dvc pull {target}` if a remote is reachable, or put them into {folder}",
        ) from None
    return True


def _copy_example(workspace: Workspace, folder: Path, pointer: Path) -> bool:
    """Copy the shipped example whose hash matches the .dvc file."""
    wanted = config.read_yaml(pointer)["outs"][0]["md5"]
    for example in sorted((workspace.root / "examples").glob("*/")):
        if dvc_md5(example) == wanted:
            with files.atomic_dir(folder) as aside:
                files.copy_tree(example, aside)
            return True
    return False


def dvc_md5(folder: Path) -> str:
    """DVC's hash of a folder: the md5 of its sorted list of files."""
    entries = [
        {
            "md5": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
            "relpath": path.relative_to(folder).as_posix(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    text = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"
