"""The photos of a subject under DVC: put back where they are missing, added for a new subject."""

from __future__ import annotations

import shutil
from pathlib import Path

from dreambooth_core import config, files
from dreambooth_core.errors import DataError
from dreambooth_core.workspace import Workspace
from tasks.dvc import Dvc


def pointer_of(instance_dir: Path) -> Path:
    """The .dvc file that tracks a folder of photos."""
    return instance_dir.with_name(f"{instance_dir.name}.dvc")


def restore(workspace: Workspace, subject: str, dvc: Dvc) -> bool:
    """Put a subject's photos in place when they are missing; True when something was done.

    They come from DVC's cache, from its remote, or from the shipped examples. Raises DataError
    when they are nowhere.
    """
    folder = workspace.resolve(config.load_view(workspace, subject).subject.instance_dir)
    if folder.is_dir():
        return False
    pointer = pointer_of(folder)
    if not pointer.is_file():
        raise DataError(
            f"the photos of {subject} are missing",
            got=f"no folder {folder}",
            hint="put 3 to 6 photos there, or use `dreambooth subject add`",
        )
    target = pointer.relative_to(workspace.root).as_posix()
    if dvc.fetch(target) or _copy_example(workspace, folder, target, dvc):
        return True
    raise DataError(
        f"the photos of {subject} are neither here, nor in DVC's cache, nor in its remote",
        hint=f"`dvc pull {target}` where the remote is in reach, or put them into {folder}",
    )


def _copy_example(workspace: Workspace, folder: Path, target: str, dvc: Dvc) -> bool:
    """Copy the shipped example of that name, if its bytes are those that the .dvc file names."""
    example = workspace.root / "examples" / folder.name
    if not example.is_dir():
        return False
    with files.atomic_dir(folder) as aside:
        files.copy_tree(example, aside)
    if dvc.status([target]):
        shutil.rmtree(folder)
        return False
    dvc.commit(target)  # into DVC's cache, so that a push finds them
    return True
