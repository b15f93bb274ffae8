"""The automatic masks of a subject's photos, made by `dreambooth subject mask --out`.

They belong to the photos and the settings; a change of either makes them invalid.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from nicegui import run

from app import commands
from app.site import Site
from dreambooth_core import files
from dreambooth_core.config import SubjectView

_MADE = "made.json"
_SMALL = 320
_NAME_LENGTH = 16
_at_work: dict[Path, asyncio.Task[None]] = {}


async def make(site: Site, view: SubjectView) -> None:
    """Make the masks of all photos, unless they are there. Raises CommandError."""
    out = _folder(site, view)
    if (out / _MADE).is_file():
        return
    if out not in _at_work:  # one process, whatever the number of browsers
        task = asyncio.get_running_loop().create_task(_make(site, view.name, out))
        _at_work[out] = task
        task.add_done_callback(lambda _: _at_work.pop(out, None))
    await asyncio.shield(_at_work[out])


def picture_of(site: Site, view: SubjectView, photo: str) -> Path | None:
    """The automatic mask of a photo in its full size, if it was made."""
    out = _folder(site, view)
    picture = out / f"{Path(photo).stem}.png"
    return picture if (out / _MADE).is_file() and picture.is_file() else None


def small(picture: Path) -> Path:
    """The same picture for a list."""
    return picture.with_suffix(".webp")


async def _make(site: Site, name: str, out: Path) -> None:
    made = await commands.call(site, "subject", "mask", name, f"--out={out}")
    await run.io_bound(_shrink, out)
    for old in out.parent.iterdir():
        if old != out:
            shutil.rmtree(old, ignore_errors=True)
    files.write_json(out / _MADE, made)


def _shrink(folder: Path) -> None:
    from PIL import Image

    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            image.thumbnail((_SMALL, _SMALL))
            image.save(small(picture), lossless=True)


def _folder(site: Site, view: SubjectView) -> Path:
    photos = site.workspace.resolve(view.subject.instance_dir)
    listed = [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(photos.glob("*"))
        if path.is_file() and path.suffix not in (".txt", ".jsonl")
    ]
    sections = {"base_model", "compute", "data", "subject"}
    settings = view.model_dump(mode="json", include=sections)
    for unrelated in ("masks", "captions", "caption_rate"):  # these change no automatic mask
        settings["data"].pop(unrelated)
    digest = files.digest_of([listed, settings])
    return site.files / "automatic" / view.name / digest[:_NAME_LENGTH]
