"""Prints a photo and its mask for the brush, as `python -m app.mask_layers ROOT NAME PHOTO`.

The photo is upright and in sRGB, as the data gate sees it. It is another process because a large
photo fills the memory.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth_core import config, environment, files
from dreambooth_core.config import SubjectView
from dreambooth_core.data import gate, masks
from dreambooth_core.data.decode import decode
from dreambooth_core.data.listing import list_folder
from dreambooth_core.errors import DataError, DreamBoothError
from dreambooth_core.pipeline import dvc_cache
from dreambooth_core.workspace import Workspace

_PHOTO_SIDE, _MASK_SIDE = 1600, 1024
"""The longest sides that are sent. A mask of at most this size loses nothing."""
_QUALITY = 90


def main(root: str, name: str, photo: str) -> None:
    """Print the layers of a photo as JSON, or the error."""
    workspace = Workspace(Path(root))
    environment.set_defaults(workspace.root)
    try:
        layers = layers_of(workspace, config.load_view(workspace, name), photo)
    except DreamBoothError as error:
        layers = {"error": str(error)}
    sys.stdout.write(json.dumps(layers))


def layers_of(workspace: Workspace, view: SubjectView, photo: str) -> dict[str, Any]:
    """The photo's size, the photo, its mask if it has one, and where that comes from.

    `canvas` is the size to paint at, `version` the hash of the mask file. Raises DataError.
    """
    folder = workspace.resolve(view.subject.instance_dir)
    own = masks.own_file(folder, photo)
    # Before the mask is read, so that one written meanwhile counts as newer.
    version = files.sha256_file(own) if own.is_file() else ""

    def cache() -> Path | None:
        return dvc_cache.folder_of(workspace.root)

    listed = list_folder(folder, subject=view.name, cache=cache).photos
    if folder / photo not in listed:
        raise DataError(f"{view.name} has no photo of this name", got=photo)
    largest = gate.max_pixels_of(view.data)
    decoded = decode(folder / photo, background=view.data.background, max_pixels=largest)
    mask, problem = None, None
    found = masks.list_masks(folder, [folder / photo], subject=view.name, cache=cache)
    file = found.file_of(folder / photo)
    try:
        mask = masks.mask_of(decoded, file, max_pixels=largest)
    except DataError as error:
        problem = error.what
    width, height = decoded.image.size
    return {
        "width": width,
        "height": height,
        "canvas": _fit(decoded.image.size, _MASK_SIDE),
        "photo": _url(decoded.image, _PHOTO_SIDE, kind="webp"),
        "mask": None if mask is None else _url(mask, _MASK_SIDE, kind="png"),
        "source": None if mask is None else "alpha" if file is None else f"masks/{file.name}",
        "problem": problem,
        "version": version,
    }


def _url(image: Image.Image, side: int, *, kind: str) -> str:
    buffer = io.BytesIO()
    small = image.resize(_fit(image.size, side), Image.Resampling.BOX)
    small.save(buffer, format=kind.upper(), quality=_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size with its longest side reduced to `side`."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


if __name__ == "__main__":
    main(*sys.argv[1:])
