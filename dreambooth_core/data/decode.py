"""Decode a photo to upright sRGB pixels without alpha, or raise the reason why not."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, UnidentifiedImageError

from dreambooth_core.data import messages
from dreambooth_core.data.jpeg import num_scans
from dreambooth_core.data.listing import KINDS, is_cut_short, is_raw, kind_of
from dreambooth_core.data.webp import canvas_size
from dreambooth_core.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "HEIF")
"""Pillow's names of the supported formats; MPO is a JPEG to which a phone adds an image."""

_BYTES_PER_PIXEL = 10
"""Memory that decoding takes, at most; `_HUNGRY` formats take more and may have fewer pixels."""
_HUNGRY = {"WEBP": 17.5, "AVIF": 13.5}
_SCANNED_MEGAPIXELS = 2000
"""Megapixels times scans of a JPEG: 20 scans of 100 megapixels. Programs write about 10."""
_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_COLOUR_SPACE = slice(16, 20)  # of an ICC profile's header
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}


@dataclass(frozen=True)
class Decoded:
    """Upright sRGB pixels (mode RGB, no metadata) with warnings about them."""

    image: Image.Image
    turned: bool
    """Whether an EXIF orientation was applied."""
    notes: tuple[str, ...]
    alpha: Image.Image | None = None
    """The alpha channel, upright, if the file has one."""


def decode(path: Path, *, background: str, max_pixels: int, min_side: int = 1) -> Decoded:
    """Read a photo: first frame, upright, sRGB, 8 bit, alpha laid onto `background` (#rrggbb).

    The header is judged before any pixel is decoded. Raises DataError with the reason when the file
    cannot be read or decoded, has more than `max_pixels` pixels (or more than Pillow's own limit of
    178 million), too many scans for its size, or a side shorter than `min_side`. Decoding takes at
    most 10 bytes for each of `max_pixels`, so formats that take more may have fewer.
    """
    pillow_heif.register_heif_opener()
    with _as_reasons(path, max_pixels=max_pixels), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata, which changes no pixel
        if is_raw(path):
            raise DataError(messages.REJECTED_RAW.format(suffix=path.suffix.lower()))
        if path.stat().st_size == 0:
            raise DataError(messages.REJECTED_EMPTY)
        if (canvas := canvas_size(path)) is not None:
            _check_memory("WEBP", canvas, max_pixels=max_pixels)
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image.size, max_pixels=max_pixels, min_side=min_side)
            _check_memory(image.format, image.size, max_pixels=max_pixels)
            if image.format in ("JPEG", "MPO"):
                _check_scans(path, image.size)
            return _normalise(image, background=background)


@contextlib.contextmanager
def _as_reasons(path: Path, *, max_pixels: int) -> Iterator[None]:
    """Turn the exceptions of decoders on broken or hostile bytes into a DataError."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_many(int(found[1]) if found else 0, max_pixels=max_pixels) from None
    except Exception as error:  # decoders raise many types: OSError, SyntaxError, struct.error...
        if isinstance(error, OSError) and error.errno is not None:
            reason = messages.REJECTED_UNREADABLE.format(error=error.strerror)
        else:
            reason = _why_undecodable(path, error)
        raise DataError(reason) from None


def _too_many(pixels: int, *, max_pixels: int) -> DataError:
    return DataError(
        messages.REJECTED_PIXELS.format(
            megapixels=f"{pixels / 1e6:.1f}", allowed=f"{max_pixels / 1e6:g}"
        )
    )


def _check_size(size: tuple[int, int], *, max_pixels: int, min_side: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise _too_many(width * height, max_pixels=max_pixels)
    if min(size) < min_side:
        raise DataError(
            messages.REJECTED_SMALL.format(width=width, height=height, min_side=min_side)
        )


def _check_memory(kind: str | None, size: tuple[int, int], *, max_pixels: int) -> None:
    """Refuse a photo in a format that takes much memory per pixel, if it has too many of them."""
    pixels, needed = size[0] * size[1], _HUNGRY.get(kind or "", 0)
    if pixels * needed > max_pixels * _BYTES_PER_PIXEL:
        allowed = max_pixels * _BYTES_PER_PIXEL / needed
        raise DataError(
            messages.REJECTED_MEMORY.format(
                kind=kind, megapixels=f"{pixels / 1e6:.1f}", allowed=f"{allowed / 1e6:.0f}"
            )
        )


def _check_scans(path: Path, size: tuple[int, int]) -> None:
    """Refuse a JPEG with so many scans that decoding takes minutes: each visits all pixels."""
    megapixels = size[0] * size[1] / 1e6
    allowed = int(_SCANNED_MEGAPIXELS / megapixels)
    if num_scans(path, at_most=allowed) > allowed:
        raise DataError(
            messages.REJECTED_SCANS.format(megapixels=f"{megapixels:.1f}", allowed=allowed)
        )


# ---- why not ------------------------------------------------------------------------------------


def _why_undecodable(path: Path, error: Exception) -> str:
    text = str(error)
    if re.search(r"truncat|end of file|not enough", text, re.IGNORECASE) or is_cut_short(path):
        return messages.REJECTED_TRUNCATED
    kind = kind_of(path)
    if kind is None:
        return messages.REJECTED_KIND.format(kinds=KINDS)
    return messages.REJECTED_DAMAGED.format(kind=kind, error=_one_line(error))


def _one_line(error: Exception) -> str:
    """A decoder's message without parts that change between runs."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture is found in them"
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"<[^>]*>|0x[0-9a-f]+", "", text)[:120].strip()


# ---- pixels -------------------------------------------------------------------------------------


def _normalise(image: Image.Image, *, background: str) -> Decoded:
    notes: list[str] = []
    if _has_more_frames(image):
        notes.append(messages.WARNED_FRAMES)
    before = _orientation(image, notes)
    image.load()
    # Pillow turns a TIFF while loading it, and then removes the tag.
    orientation = _orientation(image, notes)
    profile = cast("bytes | None", image.info.get("icc_profile"))
    colours, alpha = _split_alpha(_with_8_bits(image))
    if alpha is not None:
        image.close()  # frees its pixels: a large photo fills the memory
    colours = _to_srgb(colours, profile, notes)
    if alpha is not None:
        opaque = Image.new("RGB", colours.size, background)
        opaque.paste(colours, mask=alpha)
        colours = opaque
    if orientation in _TRANSPOSITIONS:
        colours = colours.transpose(_TRANSPOSITIONS[orientation])
        alpha = alpha.transpose(_TRANSPOSITIONS[orientation]) if alpha is not None else None
    elif colours is image:
        colours = image.copy()
    colours.info = {}  # Pillow would write a profile or a transparent colour into the copy
    turned = {before, orientation} & set(_TRANSPOSITIONS)
    return Decoded(
        image=colours, turned=bool(turned), notes=tuple(dict.fromkeys(notes)), alpha=alpha
    )


def _has_more_frames(image: Image.Image) -> bool:
    """Whether decoding drops frames or pages, besides the second image of a phone's photo."""
    if image.format in ("MPO", "HEIF"):
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame does not matter
        return True


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """EXIF orientation 1..8; always 1 for HEIC, whose decoder turns the image."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except OSError:  # reading the EXIF data of a PNG loads its pixels, and those are damaged
        raise
    except Exception:
        notes.append(messages.WARNED_EXIF)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Convert to grey, colour or CMYK with 8 bits per channel, the upper 8 of 16.

    Pillow itself keeps the upper 8 bits of 16-bit colour, but clips 16-bit grey at 255.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(messages.REJECTED_RANGE)
    return image


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours (mode L, RGB, CMYK or LAB), and the alpha channel or None."""
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA", "La", "1")
        mode = "LA" if grey else "RGBA"
        both = image if image.mode == mode else image.convert(mode)
        return both.convert("L" if grey else "RGB"), both.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Convert to RGB in sRGB, with the embedded ICC profile if it is usable."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = profile[_COLOUR_SPACE].decode("latin-1").strip()
            return _through_profile(image, source, space=space)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append(messages.WARNED_PROFILE)
    if image.mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return _through_profile(image, source, space="Lab")
    return image if image.mode == "RGB" else image.convert("RGB")


def _through_profile(
    image: Image.Image, source: ImageCms.ImageCmsProfile, *, space: str
) -> Image.Image:
    """Relative colorimetric with black point compensation, as photo editors do by default."""
    wanted = _PROFILE_MODES.get(space)
    if wanted == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    if image.mode != wanted:
        raise ValueError("the profile is one for other channels than the picture has")
    converted = ImageCms.profileToProfile(
        image,
        source,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if converted is None:
        raise ValueError("the profile gave no picture")
    return converted
