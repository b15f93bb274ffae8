"""Examines a folder of photos as `python -m app.photo_check ROOT NAME FOLDER OUT`.

It writes a line to `verdicts.jsonl` as soon as a photo is examined, with a thumbnail and the exact
squares that training sees, and `report.json` last: the data gate's report, with the duplicates.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from dreambooth_core import config, environment, files
from dreambooth_core.config import DataSettings
from dreambooth_core.data import gate, transform
from dreambooth_core.data.gate import Photo
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.pipeline import dvc_cache
from dreambooth_core.records import RejectedFile
from dreambooth_core.workspace import Workspace

VERDICTS, REPORT, ERROR = "verdicts.jsonl", "report.json", "error.json"

_THUMB = 480
_SQUARE = 320
_QUALITY = 88
_MAX_SQUARES = 4


def data_settings(workspace: Workspace, name: str) -> DataSettings:
    """The settings that the photos of a subject, or of a new one for "", are examined with."""
    settings = config.load_settings(workspace.params)
    return config.for_subject(settings, name).data if name else settings.data


def main(root: str, name: str, folder: str, out: str) -> None:
    """Examine every photo of a folder."""
    workspace, target = Workspace(Path(root)), Path(out)
    environment.set_defaults(workspace.root)
    try:
        _examine_all(workspace, name, Path(folder), target)
    except DreamBoothError as error:
        files.write_json(target / ERROR, error.to_json())


def _examine_all(workspace: Workspace, name: str, folder: Path, out: Path) -> None:
    settings, subject = data_settings(workspace, name), name or "the new subject"
    contents = gate.read_folder(
        folder, settings, subject=subject, cache=lambda: dvc_cache.folder_of(workspace.root)
    )
    examined: list[Photo | RejectedFile] = []
    with (
        files.scratch_dir(out, "copies") as scratch,
        (out / VERDICTS).open("w", encoding="utf-8") as verdicts,
    ):
        for index, path in enumerate(contents.listing.photos):
            copy = scratch / f"{index:05d}.png"
            verdict = gate.examine(path, contents, settings, copy=copy)
            row = _row(verdict, path, settings, out=out, index=index)
            verdicts.write(json.dumps({**row, "total": len(contents.listing.photos)}) + "\n")
            verdicts.flush()
            copy.unlink(missing_ok=True)
            examined.append(verdict)
        report = gate.conclude(contents, examined, settings, subject=subject).report
    report.write(out, REPORT)


def _row(
    verdict: Photo | RejectedFile, path: Path, settings: DataSettings, *, out: Path, index: int
) -> dict[str, Any]:
    if isinstance(verdict, RejectedFile):
        thumb = out / f"{index:03d}.webp"
        shown = thumb.name if _write_thumb_of_rejected(path, settings, thumb) else None
        return {"name": verdict.name, "file": path.name, "reason": verdict.reason, "thumb": shown}
    accepted = verdict.accepted
    return {
        "name": accepted.name,
        "file": path.name,
        "width": accepted.width,
        "height": accepted.height,
        "warnings": list(accepted.warnings),
        "caption": verdict.caption,
        **_pictures(verdict, settings, out=out, index=index),
    }


def _pictures(photo: Photo, settings: DataSettings, *, out: Path, index: int) -> dict[str, Any]:
    """Write the thumbnail, the mask and the squares; their names and places, in percent."""
    thumb = f"{index:03d}.webp"
    squares: list[dict[str, Any]] = []
    with Image.open(photo.copy) as image:
        side, sha256 = settings.resolution, files.sha256_file(photo.copy)
        width, height = transform.scaled_size(image.size, resolution=side)
        views = transform.views_of(image.size, settings, sha256=sha256)
        for number, view in enumerate(v for v in views if not v.mirrored):
            if number == _MAX_SQUARES:
                break
            square = f"{index:03d}-{number}.webp"
            cut = transform.cut(image, view, resolution=side)
            cut.thumbnail((_SQUARE, _SQUARE))
            cut.save(out / square, quality=_QUALITY)
            squares.append(
                {
                    "file": square,
                    "left": 100 * view.left / width,
                    "top": 100 * view.top / height,
                    "width": 100 * side / width,
                    "height": 100 * side / height,
                }
            )
        small = image.copy()
    small.thumbnail((_THUMB, _THUMB))
    small.save(out / thumb, quality=_QUALITY)
    mask = None
    if photo.mask is not None:
        mask = f"{index:03d}-mask.webp"
        with Image.open(photo.mask) as drawn:
            drawn.thumbnail((_THUMB, _THUMB))
            drawn.save(out / mask, quality=_QUALITY)
        photo.mask.unlink()
    return {"thumb": thumb, "squares": squares, "mask": mask}


def _write_thumb_of_rejected(path: Path, settings: DataSettings, target: Path) -> bool:
    """Write a thumbnail if a picture can be read with little memory."""
    with contextlib.suppress(Exception), Image.open(path) as image:
        if image.width * image.height <= settings.max_megapixels * 1e6:
            image.draft("RGB", (_THUMB, _THUMB))
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((_THUMB, _THUMB))
            small.save(target, quality=_QUALITY)
            return True
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
