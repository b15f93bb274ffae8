"""The entries of a photo folder: pictures by suffix or content, and skipped files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.data import messages
from dreambooth_core.errors import DataError
from dreambooth_core.records import RejectedFile

KINDS = "JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC"
"""The supported formats, as text."""

_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs"),
        *(".tif", ".tiff", ".bmp", ".dib", ".gif", ".heic", ".heif", ".heics", ".heifs", ".hif"),
    )
)
# Pillow opens a raw file as a TIFF and decodes its thumbnail.
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
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))


CacheDir = Callable[[], Path | None]
"""Returns the folder in which DVC caches the workspace's files; None without DVC."""


def no_cache() -> None:
    """The CacheDir of a folder that DVC does not track."""


@dataclass(frozen=True)
class Listing:
    """Entries in byte order of their names: photos and skipped files."""

    photos: tuple[Path, ...]
    skipped: tuple[RejectedFile, ...]


def list_folder(folder: Path, *, subject: str, cache: CacheDir = no_cache) -> Listing:
    """Sort the entries of a folder without opening pipes or following links out of it.

    A link into the `cache` that DVC keeps the workspace's files in is the file. `cache` is called
    only for a link that leads outside. Raises DataError if the folder is missing, unreadable, empty
    or not a folder.
    """
    entries = _entries(folder, subject=subject)
    root = folder.resolve()
    photos: list[Path] = []
    skipped: list[RejectedFile] = []
    for path in entries:
        reason = _why_skipped(path, root=root, cache=cache)
        if reason is None:
            photos.append(path)
        else:
            skipped.append(RejectedFile(name=printable(path.name), reason=reason))
    return Listing(photos=tuple(photos), skipped=tuple(skipped))


def printable(name: str) -> str:
    """A file's name with escapes for control characters and bytes that are not UTF-8, which could
    damage a record or a terminal."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _entries(folder: Path, *, subject: str) -> list[Path]:
    hint = messages.FOLDER_HINT.format(subject=subject)
    try:
        entries = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    except FileNotFoundError:
        what = messages.FOLDER_MISSING
    except NotADirectoryError:
        what = messages.FOLDER_NO_FOLDER
    except OSError as error:
        what, hint = messages.FOLDER_UNREADABLE, f"{error.strerror}: see to its permissions"
    else:
        if entries:
            return entries
        what = messages.FOLDER_EMPTY
    raise DataError(what.format(subject=subject), got=str(folder), hint=hint)


def _why_skipped(path: Path, *, root: Path, cache: CacheDir) -> str | None:
    if path.name.startswith("."):
        return messages.SKIPPED_HIDDEN
    if path.name.lower() in _SYSTEM_FILES:
        return messages.SKIPPED_SYSTEM
    try:
        if path.is_symlink() and _leads_outside(path.resolve(strict=True), root, cache):
            return messages.SKIPPED_LINK_OUTSIDE
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop, before Python 3.13
        return _why_link_fails(error)
    if stat.S_ISDIR(mode):
        return messages.SKIPPED_FOLDER
    if not stat.S_ISREG(mode):  # opening a pipe would block
        return messages.SKIPPED_SPECIAL
    return _why_no_picture(path)


def _leads_outside(target: Path, root: Path, cache: CacheDir) -> bool:
    """Whether a link's target lies neither in the folder nor in DVC's cache."""
    if target.is_relative_to(root):
        return False
    folder = cache()
    return folder is None or not target.is_relative_to(folder.resolve())


def _why_link_fails(error: OSError | RuntimeError) -> str:
    if isinstance(error, RuntimeError) or error.errno == errno.ELOOP:
        return messages.SKIPPED_LINK_LOOP
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return messages.SKIPPED_LINK_NOWHERE
    return messages.SKIPPED_UNREADABLE.format(error=error.strerror)


def _why_no_picture(path: Path) -> str | None:
    try:
        return None if is_picture(path) else messages.SKIPPED_OTHER
    except OSError as error:
        return messages.SKIPPED_UNREADABLE.format(error=error.strerror)


# ---- picture files ----------------------------------------------------------------------------


def is_picture(path: Path) -> bool:
    """Whether a file is an image by its suffix or its first bytes.

    Raises OSError if the suffix is unknown and the file cannot be read.
    """
    if path.suffix.lower() in _SUFFIXES | _RAW_SUFFIXES | _OTHER_PICTURES:
        return True
    return kind_of(path) is not None


def is_raw(path: Path) -> bool:
    """Whether a file is a camera's raw file, by its suffix."""
    return path.suffix.lower() in _RAW_SUFFIXES


def kind_of(path: Path) -> str | None:
    """The supported format of a file by its first bytes, or None."""
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
    # Some texts begin with "BM", so the size of the next header must fit too.
    is_bmp = head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES
    return "BMP" if is_bmp else None


def _kind_of_brand(brand: bytes) -> str | None:
    if brand in _AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brand in _HEIC_BRANDS + _EITHER_BRANDS else None


def is_cut_short(path: Path) -> bool:
    """Whether a WebP, AVIF or HEIC file is shorter than its boxes."""
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
