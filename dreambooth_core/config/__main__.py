"""`python -m dreambooth_core.config FILE...`: check settings files (for the pre-commit hook)."""

from __future__ import annotations

import sys
from pathlib import Path

from dreambooth_core.config.loading import check_launches, load_settings
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace


def main(argv: list[str]) -> int:
    """Check settings files. Returns 0, or 2 after printing the errors."""
    invalid = [name for name in argv if not _is_valid(Path(name))]
    return SettingsError.exit_code if invalid else 0


def _is_valid(path: Path) -> bool:
    """Whether the file is valid. Prints its mistakes."""
    try:
        check_launches(_workspace_of(path), load_settings(path))
    except SettingsError as error:
        text = str(error)
        # One call may check several files.
        sys.stderr.write(f"{text if text.startswith(path.name) else f'{path.name}: {text}'}\n")
        return False
    return True


def _workspace_of(path: Path) -> Workspace:
    """The project of a file. A preset is in a subfolder of the project's folder."""
    above = path.resolve().parents
    return Workspace(next((at for at in above if (at / "params.yaml").is_file()), above[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
