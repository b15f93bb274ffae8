"""Quality measures of photos: contrast, sharpness, aspect ratio, a shared background."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from dreambooth_core.config import DataSettings
from dreambooth_core.data import messages

MEASURED_SIDE = 256
"""The shorter side for measuring, so that the numbers do not depend on the resolution."""
LEAST_BACKGROUND_DIFFERENCE = 9.0
"""Photos whose edges differ less in colour show one background (docs/how-to-photos.md)."""

_GRID, _EDGE = 16, 2  # cells per side, and cells from the edge that count


def shrunk_grey(image: Image.Image) -> Image.Image:
    """Luminance of `image` (mode L), its shorter side reduced to MEASURED_SIDE, never enlarged."""
    grey = image.convert("L")
    scale = MEASURED_SIDE / min(grey.size)
    if scale >= 1:
        return grey
    width, height = (max(1, round(side * scale)) for side in grey.size)
    return grey.resize((width, height), Image.Resampling.LANCZOS)


def contrast(grey: Image.Image) -> float:
    """Standard deviation of the grey levels, 0 to 127.5."""
    return float(np.asarray(grey, dtype=np.float64).std())


def sharpness(grey: Image.Image) -> float:
    """Variance of the Laplacian (4 neighbours) of grey levels 0 to 255 (Pech-Pacheco et al. 2000).

    Zero for a picture of fewer than 3 x 3 pixels.
    """
    levels = np.asarray(grey, dtype=np.float64)
    if min(levels.shape) < 3:
        return 0.0
    neighbours = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:]
    return float((neighbours - 4 * levels[1:-1, 1:-1]).var())


def why_blank(grey: Image.Image, settings: DataSettings) -> str | None:
    """The reason to reject a blank or almost constant picture, or None."""
    found = contrast(grey)
    if found >= settings.min_contrast:
        return None
    return messages.REJECTED_BLANK.format(
        contrast=f"{found:.1f}", min_contrast=f"{settings.min_contrast:g}"
    )


def quality_warnings(size: tuple[int, int], grey: Image.Image, settings: DataSettings) -> list[str]:
    """Warnings about a photo of `size` (width, height in px) with its `shrunk_grey`."""
    found: list[str] = []
    sharp = sharpness(grey)
    if sharp < settings.blur_threshold:
        found.append(
            messages.WARNED_BLURRY.format(
                sharpness=f"{sharp:.0f}", threshold=f"{settings.blur_threshold:g}"
            )
        )
    ratio = max(size) / min(size)
    if ratio > settings.max_aspect_ratio:
        found.append(
            messages.WARNED_ASPECT.format(
                ratio=f"{ratio:.1f}", allowed=f"{settings.max_aspect_ratio:g}"
            )
        )
    if min(size) < settings.resolution:
        found.append(
            messages.WARNED_ENLARGED.format(side=min(size), resolution=settings.resolution)
        )
    return found


# ---- a shared background ------------------------------------------------------------------------


def edge_colours(image: Image.Image) -> NDArray[np.float64]:
    """The colours (CIELAB) along the left, top and right edge, each channel sorted: [cells, 3].

    The lower edge does not count, as the subject often touches it.
    """
    cells = image.resize((_GRID, _GRID), Image.Resampling.BOX)
    lab = np.asarray(ImageCms.applyTransform(cells, _srgb_to_lab()))
    # Pillow stores L* from 0 to 255, and a* and b* as signed bytes.
    lab_HWC = np.dstack([lab[..., 0] / 2.55, lab[..., 1:].astype(np.int8).astype(float)])
    edges = (lab_HWC[:_EDGE], lab_HWC[_EDGE:, :_EDGE], lab_HWC[_EDGE:, -_EDGE:])
    return np.sort(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)


@functools.cache
def _srgb_to_lab() -> Any:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.buildTransform(srgb, lab, "RGB", "LAB")


def background_difference(photos: Sequence[NDArray[np.float64]]) -> float:
    """The largest difference between the `edge_colours` of two photos.

    It is the mean over cells and channels: for sorted values, the earth mover's distance. So the
    background may move with the camera.
    """
    return max(float(np.abs(a - b).mean()) for a, b in itertools.combinations(photos, 2))
