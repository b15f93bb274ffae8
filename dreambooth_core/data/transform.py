"""The square views of a training image: scaling, cropping, mirroring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from dreambooth_core.config import DataSettings

if TYPE_CHECKING:
    import torch

# V views, R resolution in pixels


@dataclass(frozen=True)
class View:
    """A square of `resolution` px in the scaled image, possibly mirrored."""

    left: int
    top: int
    mirrored: bool


def views_of(size: tuple[int, int], settings: DataSettings, *, sha256: str) -> tuple[View, ...]:
    """The distinct views of an image of `size` (width, height) px, in a fixed order.

    `center_crop` gives the middle; otherwise there are up to `crops_per_image` random squares,
    drawn from (picture's sha256, crop), so that other pictures beside it change nothing. With
    `random_flip` every view is followed by its mirror image: a uniform choice among the views
    mirrors every second time.
    """
    width, height = scaled_size(size, resolution=settings.resolution)
    room = (width - settings.resolution, height - settings.resolution)
    if settings.center_crop:
        corners = [(room[0] // 2, room[1] // 2)]
    else:
        drawn = (_corner(room, sha256=sha256, crop=k) for k in range(settings.crops_per_image))
        corners = list(dict.fromkeys(drawn))
    flips = (False, True) if settings.random_flip else (False,)
    return tuple(View(left, top, mirrored) for left, top in corners for mirrored in flips)


def _corner(room: tuple[int, int], *, sha256: str, crop: int) -> tuple[int, int]:
    """The top left corner of random crop `crop`, uniform on each axis."""
    import torch  # takes seconds, and centre crops need none

    from dreambooth_core.numerics.seeding import generator_for

    generator = generator_for(int(sha256[:15], 16), "crop", crop)
    left, top = (int(torch.randint(free + 1, (), generator=generator)) for free in room)
    return left, top


def scaled_size(size: tuple[int, int], *, resolution: int) -> tuple[int, int]:
    """Width and height after scaling so that the shorter side is `resolution` px."""
    width, height = size
    if width <= height:
        return resolution, max(resolution, round(height * resolution / width))
    return max(resolution, round(width * resolution / height)), resolution


def cut(image: Image.Image, view: View, *, resolution: int) -> Image.Image:
    """Scale (bilinear over the whole source area), crop and mirror an image."""
    scaled = image.resize(scaled_size(image.size, resolution=resolution), Image.Resampling.BILINEAR)
    box = (view.left, view.top, view.left + resolution, view.top + resolution)
    square = scaled.crop(box)
    return ImageOps.mirror(square) if view.mirrored else square


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image as fp32 [3, height, width] in [-1, 1], the input of the VAE."""
    import torch

    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).to(torch.float32) / 127.5 - 1.0


def sizes_of(image: Image.Image, settings: DataSettings, *, sha256: str) -> torch.Tensor:
    """SDXL's size conditioning per view, in pixels, fp32 [V, 4]: height and width of the image,
    top and left of the crop in the scaled image (in its mirror image, for a mirrored view)."""
    import torch

    width, _ = scaled_size(image.size, resolution=settings.resolution)
    last = width - settings.resolution
    return torch.tensor(
        [
            [image.height, image.width, view.top, last - view.left if view.mirrored else view.left]
            for view in views_of(image.size, settings, sha256=sha256)
        ],
        dtype=torch.float32,
    )


def tensors_of(image: Image.Image, settings: DataSettings, *, sha256: str) -> torch.Tensor:
    """All views of an image: fp32 [V, 3, R, R] in [-1, 1]."""
    import torch

    views = views_of(image.size, settings, sha256=sha256)
    cuts = (cut(image, view, resolution=settings.resolution) for view in views)
    return torch.stack([to_tensor(square) for square in cuts])
