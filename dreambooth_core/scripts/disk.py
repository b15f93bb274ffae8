"""Folders that a flag names."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dreambooth_core.errors import DreamBoothError, SettingsError


def make_folder(folder: Path, *, flag: str) -> None:
    """Make it with those above, unless it is there. Raises SettingsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--{flag}: {folder} cannot be made", got=str(error)) from None


def require_writable(folder: Path, *, flag: str) -> None:
    """Raise SettingsError unless a file can be made in the folder; none is left there."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingsError(
            f"--{flag}: nothing can be written into {folder}",
            got=str(error.strerror),
            hint="see to its permissions, or give another folder",
        ) from None


@contextlib.contextmanager
def unmade_on_wrong_input(folder: Path, *, scratch: Path) -> Iterator[None]:
    """Where the input turns out to be wrong, remove what was made: `scratch`, and empty folders."""
    had_scratch = scratch.exists()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except DreamBoothError as error:
        if error.exit_code == SettingsError.exit_code:
            if not had_scratch:
                shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):  # something is in there
                for path in missing:
                    path.rmdir()
        raise
