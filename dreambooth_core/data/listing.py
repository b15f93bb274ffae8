"""What stands in a folder of photos: which entries are meant to be photos, which are skipped."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.data import messages
from dreambooth_core.data.kinds import is_picture
from dreambooth_core.errors import DataError
from dreambooth_core.records import TurnedAway

_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))


@dataclass(frozen=True)
class Listing:
    """Entries in byte order of their names: what is meant to be a photo, and what is skipped."""

    photos: tuple[Path, ...]
    skipped: tuple[TurnedAway, ...]


def list_folder(folder: Path, *, subject: str) -> Listing:
    """Sort the entries of a folder. Nothing is opened that could block, nothing outside is read.

    Raises DataError when the folder is missing, no folder, unreadable or empty.
    """
    entries = _entries(folder, subject=subject)
    root = folder.resolve()
    photos: list[Path] = []
    skipped: list[TurnedAway] = []
    for path in entries:
        reason = _why_skipped(path, root=root)
        if reason is None:
            photos.append(path)
        else:
            skipped.append(TurnedAway(name=printable(path.name), reason=reason))
    return Listing(photos=tuple(photos), skipped=tuple(skipped))


def printable(name: str) -> str:
    """A file's name as text that can be shown: bytes that are not UTF-8 and control characters
    are escaped, so that it can harm neither a record nor a terminal."""
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


def _why_skipped(path: Path, *, root: Path) -> str | None:
    if path.name.startswith("."):
        return messages.SKIPPED_HIDDEN
    if path.name.lower() in _SYSTEM_FILES:
        return messages.SKIPPED_SYSTEM
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(root):
            return messages.SKIPPED_LINK_OUTSIDE
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop, before Python 3.13
        return _why_link_fails(error)
    if stat.S_ISDIR(mode):
        return messages.SKIPPED_FOLDER
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        return messages.SKIPPED_SPECIAL
    return _why_no_picture(path)


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
