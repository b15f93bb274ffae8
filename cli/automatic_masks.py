"""Writes the automatic masks of a subject's photos: all or none, and tracked by DVC."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_core import config, files, locks
from dreambooth_core.config import SubjectView
from dreambooth_core.data import masks
from dreambooth_core.errors import DataError, SettingsError
from dreambooth_core.pipeline import automatic_masks
from dreambooth_core.workspace import Workspace
from tasks import photos
from tasks.dvc import Dvc

_LOCK_TIMEOUT_S = 300.0


def write(workspace: Workspace, name: str, dvc: Dvc, *, replace: bool) -> dict[str, Any]:
    """Write `masks/photo.png` for each photo without a mask, or for all; the rows of a table.

    Raises SettingsError and DataError, and after an error no mask has changed.
    """
    view = config.load_view(workspace, name)
    folder = workspace.resolve(view.subject.instance_dir)
    with _found(workspace, view, dvc, only_missing=not replace) as (rows, scratch):
        made = {row["photo"]: scratch / row["mask"] for row in rows if row["mask"]}
        with locks.hold(workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
            # Somebody may have painted one meanwhile: it stays.
            targets = {photo: masks.own_file(folder, photo) for photo in made}
            there = {photo for photo, target in targets.items() if target.is_file()}
            wanted = {p: made[p] for p in made if replace or p not in there}
            with _writing({targets[photo]: source for photo, source in wanted.items()}):
                if wanted and photos.tracked_pointer(workspace, view) is not None:
                    dvc.add_unlocked(view.subject.instance_dir)
    for row in rows:
        is_written = row["photo"] in wanted
        row["state"] = "kept" if not is_written else "replaced" if row["photo"] in there else "new"
        row["mask"] = str(targets[row["photo"]].relative_to(folder)) if is_written else None
    return _table(view, rows, folder, num_written=len(wanted))


def preview(workspace: Workspace, name: str, dvc: Dvc, *, out: Path) -> dict[str, Any]:
    """Write the masks that training makes with `data.masks: auto` to another folder."""
    if out.exists() and not out.is_dir():
        raise SettingsError("--out is not a folder", got=str(out))
    view = config.load_view(workspace, name)
    with _found(workspace, view, dvc, only_missing=False) as (rows, scratch):
        for row in rows:
            files.write_bytes(out / row["mask"], (scratch / row["mask"]).read_bytes())
            row["state"] = "new"
    return _table(view, rows, out, num_written=len(rows))


def _table(
    view: SubjectView, rows: list[dict[str, Any]], folder: Path, *, num_written: int
) -> dict[str, Any]:
    return {
        "name": view.name,
        "masks": rows,
        "written": num_written,
        "folder": str(folder),
        "used": view.data.masks == "files",
    }


@contextlib.contextmanager
def _found(
    workspace: Workspace, view: SubjectView, dvc: Dvc, *, only_missing: bool
) -> Iterator[tuple[list[dict[str, Any]], Path]]:
    """The rows of the accepted photos, and the folder with their masks, until the block ends."""
    photos.restore(workspace, view, dvc)
    with files.scratch_dir(workspace.places(view.name).store / "masks", view.name) as scratch:
        yield _find(workspace, view, scratch, only_missing=only_missing), scratch


def _find(
    workspace: Workspace, view: SubjectView, scratch: Path, *, only_missing: bool
) -> list[dict[str, Any]]:
    """Write the pictures to `scratch`: one row per accepted photo, without a mask if it has one."""
    rows: list[dict[str, Any]] = []
    by_file: dict[str, str] = {}
    places = workspace.places(view.name)
    for photo, found in automatic_masks.find(view, places, only_missing=only_missing):
        file, share = None, None
        if found is not None:
            file = f"{Path(photo).stem}.png"
            share = round(float(np.asarray(found.picture).mean()) / 255, 4)
            if by_file.setdefault(file, photo) != photo:
                raise DataError(
                    f"{by_file[file]} and {photo} would share {masks.FOLDER}/{file}",
                    hint="rename one of the two photos",
                )
            found.picture.save(scratch / file, format="PNG")
        rows.append({"photo": photo, "mask": file, "share": share})
    return sorted(rows, key=lambda row: row["photo"])


@contextlib.contextmanager
def _writing(sources: Mapping[Path, Path]) -> Iterator[None]:
    """Copy files to their targets; none of them if that, or the block, fails."""
    before = {path: path.read_bytes() if path.is_file() else None for path in sources}
    folders = {path.parent for path in sources if not path.parent.exists()}
    try:
        for target, source in sources.items():
            files.write_bytes(target, source.read_bytes())
        yield
    except BaseException:
        for path, data in before.items():
            if data is not None:
                files.write_bytes(path, data)
            else:
                path.unlink(missing_ok=True)
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
