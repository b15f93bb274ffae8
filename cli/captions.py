"""Writes suggested captions next to a subject's photos: all or none, and tracked by DVC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth_core import config, locks
from dreambooth_core.config import SubjectView
from dreambooth_core.data import captions as caption_files
from dreambooth_core.pipeline import captioning
from dreambooth_core.workspace import Workspace
from tasks import photos
from tasks.dvc import Dvc

_LOCK_TIMEOUT_S = 300.0


def caption(
    workspace: Workspace,
    name: str,
    dvc: Dvc,
    *,
    model: str | None,
    replace: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Suggest captions for the photos of a subject and write them; the rows of a table.

    Raises SettingsError and DataError, and after an error no caption has changed.
    """
    view = config.load_view(workspace, name)
    photos.restore(workspace, view, dvc)
    present, suggested = captioning.suggest(
        view, workspace.places(name), model=model, replace=replace
    )
    written = {} if dry_run else _write(workspace, view, dvc, suggested, replace=replace)
    now = {**present, **suggested}
    if not dry_run:
        folder = workspace.resolve(view.subject.instance_dir)
        now = caption_files.read_captions(folder, [folder / photo for photo in now]).by_name
    changed = suggested if dry_run else written
    return {
        "name": name,
        "captions": [
            {
                "photo": photo,
                "caption": text,
                "state": "kept"
                if photo not in changed
                else "replaced"
                if photo in present
                else "new",
            }
            for photo, text in sorted(now.items())
        ],
        "written": len(written),
        "used": view.data.captions,
    }


def _write(
    workspace: Workspace,
    view: SubjectView,
    dvc: Dvc,
    suggested: Mapping[str, str],
    *,
    replace: bool,
) -> dict[str, str]:
    """Write the captions, and let DVC track the folder's new content; those that were written.

    Somebody may have written captions while the captioner was at work: theirs stay.
    """
    folder = workspace.resolve(view.subject.instance_dir)
    with locks.hold(workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
        has_one = caption_files.have_captions(folder, list(suggested))
        wanted = {n: text for n, text in suggested.items() if replace or n not in has_one}
        with caption_files.writing(folder, wanted):
            if photos.tracked_pointer(workspace, view) is not None:
                dvc.add_unlocked(view.subject.instance_dir)
    return wanted
