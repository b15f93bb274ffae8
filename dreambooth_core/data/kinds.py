"""Which files are meant to be pictures, and of which kind: by suffix and by first bytes."""

from __future__ import annotations

from pathlib import Path

KINDS = "JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC"
"""What the gate reads, as text."""

_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs"),
        *(".tif", ".tiff", ".bmp", ".dib", ".gif", ".heic", ".heif", ".heics", ".heifs", ".hif"),
    )
)
# A raw file opens as a TIFF, but what then comes out is its thumbnail.
_RAW_SUFFIXES = frozenset(
    (
        *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2"),
        *(".raf", ".pef", ".srw", ".raw", ".3fr", ".erf", ".kdc", ".mrw", ".x3f", ".iiq"),
    )
)
_OTHER_PICTURES = frozenset(
    (
        *(".jxl", ".jp2", ".j2k", ".psd", ".psb", ".xcf", ".svg", ".ico", ".tga", ".ppm", ".pgm"),
        *(".pnm", ".pbm", ".exr", ".hdr", ".eps", ".ai", ".kra", ".pcx"),
    )
)
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_EITHER_BRANDS = (b"mif1", b"msf1")
_BMP_HEADER_SIZES = frozenset((12, 16, 40, 52, 56, 64, 108, 124))
_HEAD_BYTES = 32


def is_picture(path: Path) -> bool:
    """Whether a file is meant to be a picture, by its suffix or by its first bytes.

    Raises OSError when the suffix does not tell and the file cannot be read.
    """
    if path.suffix.lower() in _SUFFIXES | _RAW_SUFFIXES | _OTHER_PICTURES:
        return True
    return kind_of(path) is not None


def is_raw(path: Path) -> bool:
    """Whether a file is a camera's raw file, by its suffix."""
    return path.suffix.lower() in _RAW_SUFFIXES


def kind_of(path: Path) -> str | None:
    """The kind that the first bytes of a file claim, or None for none that is read."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(_TIFF_SIGNATURES):
        return "TIFF"
    if head[:4] == b"RIFF":
        return "WebP" if head[8:12] == b"WEBP" else None
    if head[4:8] == b"ftyp":
        return _kind_of_brand(head[8:12])
    # Many a text begins with "BM", so the size of the next header must fit too.
    is_bmp = head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES
    return "BMP" if is_bmp else None


def _kind_of_brand(brand: bytes) -> str | None:
    if brand in _AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brand in _HEIC_BRANDS + _EITHER_BRANDS else None


def is_cut_short(path: Path) -> bool:
    """Whether a WebP, AVIF or HEIC file is shorter than its own boxes say."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(12)
        if head[:4] == b"RIFF":
            return int.from_bytes(head[4:8], "little") + 8 > size
        if head[4:8] != b"ftyp":
            return False
        position = 0
        while position + 8 <= size:
            stream.seek(position)
            box = stream.read(16)
            length = int.from_bytes(box[:4], "big")
            if length == 1:
                length = int.from_bytes(box[8:16], "big")
            if length < 8:  # 0: up to the end of the file
                return False
            position += length
        return position != size
