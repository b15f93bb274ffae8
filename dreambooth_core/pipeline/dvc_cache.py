"""The folder of DVC's cache, where `cache.type symlink` makes photos and outputs links into it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_TIMEOUT_S = 60.0


def folder_of(root: Path) -> Path | None:
    """The cache as DVC is configured (system, user, project, local), or None without DVC."""
    if not (root / ".dvc").is_dir():
        return None
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "dvc", "cache", "dir"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return root / answer.stdout.strip() if answer.stdout.strip() else None
