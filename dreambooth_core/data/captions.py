"""Captions of photos: `photo.txt` next to `photo.jpg`, or lines of `metadata.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core import files
from dreambooth_core.data import messages
from dreambooth_core.data.listing import printable
from dreambooth_core.errors import DataError
from dreambooth_core.records import ManifestImage

METADATA = "metadata.jsonl"
"""One object per line: `{"file_name": "photo.jpg", "text": "a photo of sks mug on a table"}`."""

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Captions:
    """Captions by the photo's file name, the files that contain them, and warnings."""

    by_name: dict[str, str]
    files: frozenset[str]
    warnings: tuple[str, ...] = ()


def read_captions(folder: Path, photos: Sequence[Path]) -> Captions:
    """Read the captions of the photos in a folder, without following links out of it.

    Raises DataError for a file that cannot be read as captions, and for a photo with two.
    """
    beside = {photo.name: photo.with_suffix(".txt") for photo in photos}
    found = {name: path for name, path in beside.items() if _is_own_file(path, folder)}
    by_name = {name: _words(_text(path)) for name, path in found.items()}
    listed = dict(_listed(folder / METADATA)) if _is_own_file(folder / METADATA, folder) else {}
    for name, caption in listed.items():
        if by_name.setdefault(name, caption) != caption:
            raise DataError(
                messages.CAPTION_TWICE.format(name=printable(name), metadata=METADATA),
                hint="remove one of the two",
            )
    unknown = sorted(set(listed) - {photo.name for photo in photos})
    sources = {path.name for path in found.values()} | ({METADATA} if listed else set())
    return Captions(
        by_name={name: caption for name, caption in by_name.items() if caption},
        files=frozenset(sources),
        warnings=tuple(messages.CAPTION_OF_NOTHING.format(name=printable(n)) for n in unknown),
    )


def write_caption(folder: Path, photo: str, caption: str) -> None:
    """Write the caption of a photo where it has one, else next to it; an empty one removes it.

    Raises DataError if the folder's captions cannot be read.
    """
    text, metadata = _words(caption), folder / METADATA
    listed = dict(_listed(metadata)) if metadata.is_file() else {}
    if photo in listed:
        kept = {**listed, photo: text} if text else {k: v for k, v in listed.items() if k != photo}
        lines = [json.dumps({"file_name": name, "text": own}) for name, own in kept.items()]
        files.write_text(metadata, "".join(f"{line}\n" for line in lines))
    beside = (folder / photo).with_suffix(".txt")
    if text and photo not in listed:
        files.write_text(beside, f"{text}\n")
    elif beside.is_file():  # one caption is enough
        beside.unlink()


def have_captions(folder: Path, photos: Sequence[str]) -> set[str]:
    """The photos with a caption, or with a link in its place, which may not be followed.

    Raises DataError if the folder's captions cannot be read.
    """
    found = read_captions(folder, [folder / name for name in photos]).by_name
    return {n for n in photos if n in found or (folder / n).with_suffix(".txt").is_symlink()}


@contextmanager
def writing(folder: Path, captions: Mapping[str, str]) -> Iterator[None]:
    """Write the captions of photos; none of them if writing, or the block, fails."""
    beside = [(folder / photo).with_suffix(".txt") for photo in captions]
    touched = [*beside, folder / METADATA]
    before = {path: path.read_bytes() if path.is_file() else None for path in touched}
    try:
        for photo, caption in captions.items():
            write_caption(folder, photo, caption)
        yield
    except BaseException:
        for path, data in before.items():
            if data is not None:
                files.write_bytes(path, data)
            elif path.is_file():
                path.unlink()
        raise


def _is_own_file(path: Path, folder: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _text(path: Path) -> str:
    """A text file's content. Raises DataError."""
    try:
        data = path.read_bytes()[: _MAX_BYTES + 1]
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{printable(path.name)} cannot be read", got=str(error)) from None
    if len(data) > _MAX_BYTES:
        raise DataError(
            f"{printable(path.name)} is too large to hold captions", allowed=f"{_MAX_BYTES} bytes"
        )
    return text


def _words(text: str) -> str:
    """The text on one line, with single spaces."""
    return " ".join(text.split())


def _listed(path: Path) -> Iterator[tuple[str, str]]:
    """File name and caption of each line. Raises DataError with the number of a wrong one."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            yield _parsed(line, number)


def _parsed(line: str, number: int) -> tuple[str, str]:
    try:
        entry: Any = json.loads(line)
        name, caption = entry["file_name"], entry["text"]
        f"{name}{caption}".encode()  # half of a surrogate pair is no character
    except (ValueError, TypeError, KeyError, RecursionError):
        name = caption = None
    if not isinstance(name, str) or not isinstance(caption, str):
        raise DataError(
            messages.CAPTION_LINE.format(metadata=METADATA, number=number),
            got=line[:80],
            allowed='{"file_name": "photo.jpg", "text": "..."}',
        )
    return name, _words(caption)


def without_identifier(images: Sequence[ManifestImage], identifier: str) -> tuple[str, ...]:
    """Warnings for captions without the identifier, which cannot teach the subject."""
    return tuple(
        messages.CAPTION_WITHOUT.format(file=image.file, identifier=identifier)
        for image in images
        if image.caption is not None and identifier.lower() not in image.caption.lower()
    )
