"""Images on the page: reproducible encoding, sizes for a page, and a bundled font."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from PIL import Image, ImageFont

_SIDES_PX = (512, 384, 256, 192, 128, 96)
_LOSSLESS_SIDE_PX = 128
_PROBES = 12  # images that stand for all when a side is tried
_WEBP_QUALITY = 88


def font(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib, with the same layout on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size_px, layout_engine=ImageFont.Layout.BASIC)


def open_rgb(path: Path) -> Image.Image:
    """Read an image file as RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def fit(image: Image.Image, side_px: int) -> Image.Image:
    """Scale an image to a longer side of `side_px`: bicubic up, Lanczos down."""
    scale = side_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    method = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    return image if size == image.size else image.resize(size, method)


def png_bytes(image: Image.Image) -> bytes:
    """Encode an optimised PNG: the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uris(paths: Iterable[Path], *, limit_chars: int) -> dict[Path, str]:
    """Images as data URIs of at most `limit_chars` together, with smaller sides for many images.

    Small images stay lossless where there is room. Raises ValueError if they never fit.
    """
    unique = list(dict.fromkeys(paths))
    every = max(1, len(unique) // _PROBES)
    for side in _SIDES_PX:
        probes = [len(_data_uri(path, side)) for path in unique[::every]]
        if sum(probes) * len(unique) > limit_chars * len(probes):
            continue
        found = {path: _data_uri(path, side) for path in unique}
        if sum(map(len, found.values())) <= limit_chars:
            return found
    raise ValueError(f"{len(unique)} images do not fit into {limit_chars} characters")


def _data_uri(path: Path, side: int) -> str:
    image = open_rgb(path)
    if side == _SIDES_PX[0] and max(image.size) <= _LOSSLESS_SIDE_PX:
        return _uri("png", png_bytes(image))
    return _webp(fit(image, side) if max(image.size) > side else image)


def fitting_uri(path: Path, limit_bytes: int) -> str:
    """An image as a data URI of at most `limit_bytes`: smaller sides where it does not fit."""
    image = open_rgb(path)
    side = max(image.size)
    while len(uri := _webp(fit(image, side))) > limit_bytes:
        side = side * 4 // 5
    return uri


def _webp(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=_WEBP_QUALITY, method=4)
    return _uri("webp", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
