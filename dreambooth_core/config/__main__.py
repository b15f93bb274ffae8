"""`python -m dreambooth_core.config FILE...`: check settings files (for the pre-commit hook)."""

from __future__ import annotations

import sys
from pathlib import Path

from dreambooth_core.config.loading import check_launches, load_settings
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace


def main(argv: list[str]) -> int:
    """Check settings files (for the pre-commit hook). 0: all good; 2: errors were printed."""
    wrong = [name for name in argv if not _is_good(Path(name))]
    return SettingsError.exit_code if wrong else 0


def _is_good(path: Path) -> bool:
    """Whether the file can be used as it is; what is wrong with it is printed."""
    try:
        check_launches(_workspace_of(path), load_settings(path))
    except SettingsError as error:
        told = str(error)
        # Several files are checked in one call.
        sys.stderr.write(f"{told if told.startswith(path.name) else f'{path.name}: {told}'}\n")
        return False
    return True


def _workspace_of(path: Path) -> Workspace:
    """The project that a file belongs to: presets lie in a folder below params.yaml."""
    above = path.resolve().parents
    return Workspace(next((at for at in above if (at / "params.yaml").is_file()), above[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
