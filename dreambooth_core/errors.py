"""Errors for users: what was wrong, what was found, what is allowed, what to do.

The class gives the exit code of the command line: 2 for wrong input or settings, 1 for failed work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self


class DreamBoothError(Exception):
    """Base of every error that users see; its text is a readable sentence or paragraph."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        got: str | None = None,
        allowed: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.got, self.allowed, self.hint = what, got, allowed, hint
        parts = [what]
        if got is not None:
            parts.append(f"found: {got}")
        if allowed is not None:
            parts.append(f"allowed: {allowed}")
        if hint is not None:
            parts.append(f"what to do: {hint}")
        super().__init__("; ".join(parts))

    def to_json(self) -> dict[str, str]:
        """The parts of the message that are set, for `--json`."""
        parts = {"what": self.what, "got": self.got, "allowed": self.allowed, "hint": self.hint}
        return {name: text for name, text in parts.items() if text is not None}


def repeat_hint(path: Path, *, delete: bool = False) -> str:
    """The command that makes a stage's output again, from the path of a file in it.

    With `delete`, the output looks up to date, so it has to be removed first.
    """
    for folder in path.absolute().parents:
        stage, subject, work = folder, folder.parent, folder.parent.parent
        if work.name == "work" and (work.parent / "params.yaml").is_file():
            remove = f"rm -r work/{subject.name}/{stage.name} && " if delete else ""
            return f"{remove}dreambooth run {subject.name}"
    return "delete that folder and repeat the command that made it"


@dataclass(frozen=True)
class Problem:
    """One mistake in the settings: its text, the dotted key of the setting, the file."""

    text: str
    key: str | None = None
    file: str | None = None

    def spelled(self, spell: Callable[[str], str | None]) -> str:
        """The text after the file and the key, which `spell` turns into a flag or leaves out."""
        key = None if self.key is None else spell(self.key)
        return ": ".join(part for part in (self.file, key, self.text) if part is not None)

    def __str__(self) -> str:
        return self.spelled(str)


class SettingsError(DreamBoothError):
    """Wrong settings in params.yaml or on a command line: one problem, or all of them at once."""

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        key: str | None = None,
        got: str | None = None,
        allowed: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, got=got, allowed=allowed, hint=hint)
        self.problems = (Problem(str(self), key),)
        self.args = (str(self.problems[0]),)

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Self:
        """One error with a line for each problem."""
        listed = tuple(problems)
        error = cls("\n".join(map(str, listed)))
        error.problems = listed
        return error


class DataError(DreamBoothError):
    """The user's photos, or other input files, are unusable."""

    exit_code = 2


class StageError(DreamBoothError):
    """A stage failed: a crash of the trainer, a full disk, a non-finite loss."""


class Stopped(DreamBoothError):
    """The work stopped on request (Ctrl-C, SIGTERM, cancel); it continues on the next run."""


def file_error(error: Exception) -> StageError | None:
    """The error for a file that the system refuses to read or write; None for any other error."""
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return None
    return StageError(
        f"the file system refuses {error.filename}",
        got=error.strerror,
        hint="free space, change its permissions, or move it away; then repeat the command",
    )


class CorruptRecordError(DreamBoothError):
    """A file of the project does not match its record."""


def corrupt_record(
    path: Path, kind: str, text: str, unknown: Sequence[Sequence[int | str]]
) -> CorruptRecordError:
    """The error about a record that does not fit its class: of a newer version, or damaged."""
    if not unknown:
        return CorruptRecordError(f"{path} is not a {kind}", got=text, hint=repeat_hint(path))
    return CorruptRecordError(
        f"{path} has fields that this version does not know, so a newer version wrote it",
        got=", ".join(".".join(map(str, place)) for place in unknown),
        hint=f"install the newer version, or repeat the stage: {repeat_hint(path, delete=True)}",
    )


class RegistryError(DreamBoothError):
    """The model registry refused, is unreachable, or holds unexpected content."""


class UnknownModelError(RegistryError):
    """A command names a model, version or alias that the registry does not hold."""

    exit_code = 2
