"""Folders that a flag names."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dreambooth_core.errors import SettingsError


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
