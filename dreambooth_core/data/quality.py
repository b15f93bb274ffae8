"""Quality measures of a photo: contrast, sharpness, aspect ratio."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dreambooth_core.config import DataSettings
from dreambooth_core.data import messages

MEASURED_SIDE = 256
"""The shorter side for measuring, so that the numbers do not depend on the resolution."""


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
