"""Made-up photographs and broken files, for the tests of the data gate."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

from dreambooth_core.config import DataSettings

pillow_heif.register_heif_opener()

ROOMY = DataSettings.model_validate(
    {
        "resolution": 64,
        "center_crop": True,
        "crops_per_image": 1,
        "random_flip": False,
        "background": "#ffffff",
        "min_side": 64,
        "max_megapixels": 100,
        "near_duplicate_distance": 4,
        "min_contrast": 4.0,
        "blur_threshold": 40.0,
        "max_aspect_ratio": 2.5,
        "min_photos": 3,
        "max_photos": 12,
    }
)
"""Settings that the tests state their numbers for."""


def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture (mode RGB) with coarse shapes and fine texture; each seed shows another one."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    levels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    texture = rng.normal(0, 12, (size[1], size[0], 1))
    return Image.fromarray(np.clip(levels + texture, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file of that kind (Pillow's name)."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif_with_orientation(orientation: int) -> bytes:
    """EXIF data that hold nothing but the orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


LAID_DOWN: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}
"""How a camera stores an upright scene under each EXIF orientation (TIFF 6.0: where row 0 and
column 0 are seen: 6 = right and top, so the stored picture is the scene turned 90 degrees left)."""


# ---- PNG by hand --------------------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    size: tuple[int, int], data: bytes, *, bits: int = 8, colour: int = 2, extra: bytes = b""
) -> bytes:
    """A PNG file whose header may promise more than `data` (the filtered rows) hold."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def png16(levels: np.ndarray) -> bytes:
    """16-bit PNG of levels (H, W, channels): 1 grey, 2 with alpha, 3 colour, 4 with alpha."""
    height, width, channels = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return png((width, height), rows, bits=16, colour=colour)


def tiff16_rgb(levels: np.ndarray) -> bytes:
    """Uncompressed little-endian 16-bit RGB TIFF of levels (H, W, 3)."""
    height, width, _ = levels.shape
    data = levels.astype("<u2").tobytes()
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 14),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<I", 14 + len(data)) + struct.pack("<HHH", 16, 16, 16)
    return head + data + struct.pack("<H", len(entries)) + directory + b"\0\0\0\0"


# ---- an ICC profile by hand ---------------------------------------------------------------------

ADOBE_RGB_TO_XYZ = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
"""Adobe RGB (1998), section 4.3.4.2: linear RGB to XYZ relative to D50."""
SRGB_TO_XYZ = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
"""sRGB's primaries adapted to D50, as in the profile of the ICC."""
ADOBE_GAMMA = 563 / 256


def adobe_to_srgb(levels: tuple[int, int, int]) -> list[float]:
    """Levels 0 to 255 of Adobe RGB in sRGB, by the two standards' formulas."""
    linear = (np.array(levels) / 255) ** ADOBE_GAMMA
    target = np.clip(np.linalg.solve(SRGB_TO_XYZ, ADOBE_RGB_TO_XYZ @ linear), 0, 1)
    curve = np.where(target <= 0.0031308, 12.92 * target, 1.055 * target ** (1 / 2.4) - 0.055)
    return [float(level) for level in 255 * curve]


def adobe_rgb_profile() -> bytes:
    """An ICC v2 matrix profile of Adobe RGB (1998)."""

    def fixed(number: float) -> bytes:
        return struct.pack(">i", round(number * 65536))

    def xyz(column: Any) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(fixed(float(number)) for number in column)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 563) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 6) + b"Adobe\0" + bytes(78) + b"\0\0"
    tags: list[tuple[bytes, bytes]] = [
        (b"desc", text),
        (b"cprt", b"text\0\0\0\0none\0\0\0\0"),
        (b"wtpt", xyz((0.9642, 1.0, 0.8249))),
        *(
            (name, xyz(ADOBE_RGB_TO_XYZ[:, i]))
            for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
        ),
        *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")),
    ]
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return head.ljust(128, b"\0") + table + body
