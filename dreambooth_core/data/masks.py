"""Masks of photos: `masks/photo.png` next to `photo.jpg`, or the photo's own alpha channel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_core.data import messages
from dreambooth_core.data.decode import Decoded, decode
from dreambooth_core.data.listing import CacheDir, is_picture, list_folder, printable
from dreambooth_core.errors import DataError

FOLDER = "masks"
"""The folder in the photos' folder. White is the subject; a cut-out with alpha works too."""

LEAST_SHARE = 0.01
"""A mask with less white is rejected."""
_OPAQUE = 255


def own_file(folder: Path, photo: str) -> Path:
    """The mask file of a photo: the one that the gate reads, or where to put one."""
    stem = Path(photo).stem
    there = [path for path in (folder / FOLDER).glob("*") if path.stem == stem and path.is_file()]
    masks = [path for path in there if not path.name.startswith(".") and is_picture(path)]
    new = folder / FOLDER / f"{stem}.png"
    return max(masks, key=lambda path: os.fsencode(path.name), default=new)


@dataclass(frozen=True)
class Masks:
    """Mask files by the stem of their photo's name, and warnings."""

    by_stem: Mapping[str, Path] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def file_of(self, photo: Path) -> Path | None:
        """The mask file of a photo."""
        return self.by_stem.get(photo.stem)


def list_masks(folder: Path, photos: Sequence[Path], *, subject: str, cache: CacheDir) -> Masks:
    """Find the mask files of the photos in a folder. Raises DataError for an unreadable folder."""
    masks = folder / FOLDER
    if not masks.is_dir() or not any(masks.iterdir()):
        return Masks()
    listing = list_folder(masks, subject=subject, cache=cache)
    stems = {photo.stem for photo in photos}
    unknown = [path.name for path in listing.photos if path.stem not in stems]
    return Masks(
        by_stem={path.stem: path for path in listing.photos if path.stem in stems},
        warnings=(
            *(messages.MASK_OF_NOTHING.format(name=f"{FOLDER}/{printable(n)}") for n in unknown),
            *(
                messages.MASK_SKIPPED.format(name=f"{FOLDER}/{each.name}", reason=each.reason)
                for each in listing.skipped
            ),
        ),
    )


def mask_of(photo: Decoded, file: Path | None, *, max_pixels: int) -> Image.Image | None:
    """The mask (mode L, the photo's size) from a file, else from the photo's alpha channel.

    Raises DataError for a file that cannot be read, has another size, or shows no subject.
    """
    mask = _read(file, max_pixels=max_pixels) if file is not None else _partly(photo.alpha)
    if mask is None:
        return None
    if mask.size != photo.image.size:
        raise DataError(
            messages.REJECTED_MASK_SIZE.format(
                found=_size(mask), size=_size(photo.image), folder=FOLDER
            )
        )
    if np.asarray(mask).mean() < LEAST_SHARE * _OPAQUE:
        raise DataError(messages.REJECTED_MASK_EMPTY)
    return mask


def _read(file: Path, *, max_pixels: int) -> Image.Image:
    try:
        decoded = decode(file, background="#000000", max_pixels=max_pixels)
    except DataError as error:
        name = f"{FOLDER}/{printable(file.name)}"
        raise DataError(messages.REJECTED_MASK.format(name=name, reason=error.what)) from None
    return _partly(decoded.alpha) or decoded.image.convert("L")


def _partly(alpha: Image.Image | None) -> Image.Image | None:
    """The alpha channel, unless it is opaque everywhere."""
    return None if alpha is None or alpha.getextrema() == (_OPAQUE, _OPAQUE) else alpha


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height} px"
