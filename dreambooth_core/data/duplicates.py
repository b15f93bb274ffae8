"""Photos that show the same picture: exactly, or by their perceptual hashes."""

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
class Likeness:
    """What two photos are compared by: the sha256 of their pixels and a 64-bit perceptual hash."""

    name: str
    num_pixels: int
    pixels_sha256: str
    perceptual: imagehash.ImageHash


def likeness_of(image: Image.Image, *, name: str, grey: Image.Image | None = None) -> Likeness:
    """The likeness of RGB pixels; `grey` is their `shrunk_grey`, where it is there already."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return Likeness(
        name=name,
        num_pixels=image.width * image.height,
        pixels_sha256=digest.hexdigest(),
        perceptual=imagehash.phash(grey if grey is not None else shrunk_grey(image)),
    )


def read_likenesses(files: Mapping[str, Path]) -> list[Likeness]:
    """The likenesses of published images (name -> PNG file), in the order given."""
    found: list[Likeness] = []
    for name, path in files.items():
        with Image.open(path) as image:
            found.append(likeness_of(image.convert("RGB"), name=name))
    return found


def duplicates(photos: Iterable[Likeness], *, distance: int) -> dict[str, str]:
    """Which photos (by name) are to be rejected as duplicates, and why.

    Photos are taken in order of pixels, most first, then of names; each is kept unless it is like
    one that was kept before. In a chain A ~ B ~ C with A unlike C, A and C stay if A comes first.
    """
    kept: list[Likeness] = []
    rejected: dict[str, str] = {}
    for photo in sorted(photos, key=lambda each: (-each.num_pixels, each.name)):
        reason = _why_duplicate(photo, kept, distance=distance)
        if reason is None:
            kept.append(photo)
        else:
            rejected[photo.name] = reason
    return rejected


def _why_duplicate(photo: Likeness, kept: list[Likeness], *, distance: int) -> str | None:
    for other in kept:
        if other.pixels_sha256 == photo.pixels_sha256:
            return messages.REJECTED_EXACT.format(other=other.name)
    nearest = min(kept, key=lambda other: _distance(photo, other), default=None)
    if nearest is None or _distance(photo, nearest) > distance:
        return None
    return messages.REJECTED_NEAR.format(
        other=nearest.name, distance=_distance(photo, nearest), allowed=distance
    )


def _distance(one: Likeness, other: Likeness) -> int:
    """How many of the 64 bits differ."""
    return int(one.perceptual - other.perceptual)


def also_among(
    photos: Iterable[Likeness], class_images: Iterable[Likeness], *, distance: int
) -> tuple[str, ...]:
    """A warning for each instance photo that also stands among the class images."""
    others = list(class_images)
    found: list[str] = []
    for photo in photos:
        nearest = min(others, key=lambda other: _distance(photo, other), default=None)
        if nearest is not None and _distance(photo, nearest) <= distance:
            found.append(messages.CLASS_AMONG.format(photo=photo.name, other=nearest.name))
    return tuple(found)
