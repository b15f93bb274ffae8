"""Folders that a flag names."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.errors import SettingsError


def make_folder(folder: Path, *, flag: str) -> None:
    """Make it with those above, unless it is there. Raises SettingsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--{flag}: {folder} cannot be made", got=str(error)) from None
