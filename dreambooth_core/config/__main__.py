"""`python -m dreambooth_core.config FILE...`: check settings files (for the pre-commit hook)."""

from __future__ import annotations

import sys
from pathlib import Path

from dreambooth_core.config.loading import load_settings
from dreambooth_core.errors import SettingsError


def main(argv: list[str]) -> int:
    """Check settings files (for the pre-commit hook). 0: all good; 2: errors were printed."""
    for name in argv:
        try:
            load_settings(Path(name))
        except SettingsError as error:
            sys.stderr.write(f"{error}\n")
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
