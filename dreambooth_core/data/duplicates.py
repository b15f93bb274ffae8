"""Duplicate photos: equal pixels, or close perceptual hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import imagehash
from PIL import Image

from dreambooth_core.data import messages
from dreambooth_core.data.quality import shrunk_grey


@dataclass(frozen=True)
class ImageHashes:
    """The hashes of a photo: the sha256 of its pixels and a 64-bit perceptual hash."""

    name: str
    num_pixels: int
    pixels_sha256: str
    perceptual: imagehash.ImageHash


def hashes_of(image: Image.Image, *, name: str, grey: Image.Image | None = None) -> ImageHashes:
    """Hash RGB pixels; `grey` is their `shrunk_grey`, if the caller has it already."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return ImageHashes(
        name=name,
        num_pixels=image.width * image.height,
        pixels_sha256=digest.hexdigest(),
        perceptual=imagehash.phash(grey if grey is not None else shrunk_grey(image)),
    )


def read_hashes(files: Mapping[str, Path]) -> list[ImageHashes]:
    """Hash published images (name -> PNG file), in the order given."""
    found: list[ImageHashes] = []
    for name, path in files.items():
        with Image.open(path) as image:
            found.append(hashes_of(image.convert("RGB"), name=name))
    return found


def duplicates(photos: Iterable[ImageHashes], *, distance: int) -> dict[str, str]:
    """The photos to reject as duplicates: name -> reason.

    The largest photo comes first, ties by name; each stays unless it duplicates one that stays. In
    a chain A ~ B ~ C where A and C differ, A and C stay if A comes first.
    """
    kept: list[ImageHashes] = []
    rejected: dict[str, str] = {}
    for photo in sorted(photos, key=lambda each: (-each.num_pixels, each.name)):
        reason = _why_duplicate(photo, kept, distance=distance)
        if reason is None:
            kept.append(photo)
        else:
            rejected[photo.name] = reason
    return rejected


def _why_duplicate(photo: ImageHashes, kept: list[ImageHashes], *, distance: int) -> str | None:
    for other in kept:
        if other.pixels_sha256 == photo.pixels_sha256:
            return messages.REJECTED_EXACT.format(other=other.name)
    nearest = min(kept, key=lambda other: _distance(photo, other), default=None)
    if nearest is None or _distance(photo, nearest) > distance:
        return None
    return messages.REJECTED_NEAR.format(
        other=nearest.name, distance=_distance(photo, nearest), allowed=distance
    )


def _distance(one: ImageHashes, other: ImageHashes) -> int:
    """The number of differing bits, of 64."""
    return int(one.perceptual - other.perceptual)


def also_among(
    photos: Iterable[ImageHashes], class_images: Iterable[ImageHashes], *, distance: int
) -> tuple[str, ...]:
    """A warning for each instance photo that is also a class image."""
    others = list(class_images)
    found: list[str] = []
    for photo in photos:
        nearest = min(others, key=lambda other: _distance(photo, other), default=None)
        if nearest is not None and _distance(photo, nearest) <= distance:
            found.append(messages.CLASS_AMONG.format(photo=photo.name, other=nearest.name))
    return tuple(found)
