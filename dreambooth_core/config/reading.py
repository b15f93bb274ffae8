"""Reading YAML files for people: what cannot be read is told, with the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dreambooth_core.errors import SettingsError


def read_yaml(path: Path) -> Any:
    """The content of a YAML 1.2 file (so that 5e-6 is a number). Raises SettingsError."""
    try:
        parser: Any = YAML(typ="safe", pure=True)
        return parser.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path.name} does not exist in {path.parent}",
            hint="run from the project's folder, or write one with `dreambooth preset use pocket`",
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} is not valid YAML", got=str(error)) from None


def mapping(value: Any) -> dict[str, Any]:
    """A mapping of a file, or an empty one where something else stands."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
