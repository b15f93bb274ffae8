"""Folders of many subjects, laid out like the public data set of the DreamBooth paper.

ROOT/prompts_and_classes.txt    "subject_name,class", then one line per subject, then a blank one
ROOT/SUBJECT/*.jpg              the photos of a subject
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.config import check_name
from dreambooth_core.errors import DataError

CLASSES_FILE = "prompts_and_classes.txt"
_HEADER = "subject_name,class"
_EXAMPLE = f"{_HEADER}\nbackpack,backpack\ncat2,cat"


@dataclass(frozen=True)
class SubjectFolder:
    """A subject: its name, the folder of its photos, and the noun of its class."""

    name: str
    folder: Path
    class_noun: str


def read_subjects(root: Path) -> list[SubjectFolder]:
    """The subjects below `root` that have photos, in the order of the file.

    Raises DataError if the file of classes is missing or wrong, and for a folder without a class.
    """
    classes, folders = _read_classes(root), _folders(root)
    problems = [f"{name} has no class" for name in sorted(folders - classes.keys())]
    for name in sorted(classes.keys() & folders):
        try:
            check_name(name)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems or not folders:
        raise DataError(
            f"the folders in {root} do not match {CLASSES_FILE}",
            got="; ".join(problems) or "no folder",
            allowed="one folder per line of the file",
        )
    return [SubjectFolder(name, root / name, classes[name]) for name in classes if name in folders]


def missing_subjects(root: Path) -> list[str]:
    """The subjects that have a class but no folder."""
    folders = _folders(root)
    return [name for name in _read_classes(root) if name not in folders]


def write_classes(root: Path, classes: Mapping[str, str]) -> None:
    """Write the file that `read_subjects` reads: the class of each subject."""
    lines = [f"{name},{noun}" for name, noun in classes.items()]
    files.write_text(root / CLASSES_FILE, "\n".join(["Classes", "", _HEADER, *lines, "", ""]))


def _folders(root: Path) -> set[str]:
    return {e.name for e in root.iterdir() if e.is_dir() and not e.name.startswith(".")}


def _read_classes(root: Path) -> dict[str, str]:
    if not root.is_dir():
        raise DataError("no folder of subjects", got=str(root), hint="--subjects-root FOLDER")
    path = root / CLASSES_FILE
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(
            f"{path} cannot be read", got=reason, hint=f"write it like this:\n{_EXAMPLE}"
        ) from None
    start = lines.index(_HEADER) + 1 if _HEADER in lines else len(lines)
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    rows = [[part.strip() for part in line.split(",")] for line in lines[start:end]]
    classes = {row[0]: row[-1] for row in rows}
    bad = [line for line, row in zip(lines[start:end], rows, strict=True) if len(row) != 2]
    if not rows or bad or not all(all(row) for row in rows) or len(classes) != len(rows):
        raise DataError(
            f"{path} lists no class for every subject",
            got="; ".join(bad) or f"{len(rows)} lines below {_HEADER!r}",
            allowed="lines of two words, each subject once",
            hint=f"write it like this:\n{_EXAMPLE}",
        )
    return classes
