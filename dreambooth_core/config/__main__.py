"""`python -m dreambooth_core.config FILE...`: check settings files (for the pre-commit hook).

`python -m dreambooth_core.config write`: in a checkout, write what is made from the declarations of
the settings: docs/settings.md, presets/params.schema.json, and the comments in settings files.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.config import reference
from dreambooth_core.config.loading import check_launches, load_settings
from dreambooth_core.errors import SettingsError
from dreambooth_core.workspace import Workspace


def main(argv: list[str]) -> int:
    """Check settings files, or `write`. Returns 0, or 2 after printing the errors."""
    if argv == ["write"]:
        return _write(Path.cwd())
    invalid = [name for name in argv if not _is_valid(Path(name))]
    return SettingsError.exit_code if invalid else 0


def generated(root: Path) -> dict[Path, str]:
    """The content of every file of a checkout that is made from the settings' declarations."""
    settings = [root / "params.yaml", *sorted((root / "presets").glob("*.yaml"))]
    return {
        root / "docs" / "settings.md": reference.markdown(),
        root / "presets" / "params.schema.json": reference.json_schema(),
        **{path: reference.commented(path.read_text(encoding="utf-8")) for path in settings},
    }


def _write(root: Path) -> int:
    for path, text in generated(root).items():
        files.write_text(path, text)
    return 0


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
