"""`dvc status` for many subjects: reads params.yaml once, instead of once per stage.

DVC parses the file for each stage, and walks through all of it for each setting, so its time grows
with the square of the number of subjects. The file does not change during the command.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

from dvc.cli import main
from dvc.dependency import param


class DirectLookup:
    """The one function of `dpath` that DVC reads a setting with."""

    @staticmethod
    def get(settings: Mapping[str, Any], key: str, *, separator: str) -> Any:
        """The value of a dotted key. Raises KeyError if it is missing."""
        value: Any = settings
        for part in key.split(separator):
            if not isinstance(value, Mapping):
                raise KeyError(key)
            value = value[part]
        return value


if __name__ == "__main__":
    param.__dict__.update(load_path=functools.cache(param.load_path), dpath=DirectLookup)
    sys.exit(main(sys.argv[1:]))
