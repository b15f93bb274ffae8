"""Everything about DreamBooth that knows no orchestrator; these names are its Python API.

`import dreambooth_core` is light: the API is imported when one of its names is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreambooth_core.api import (
        generate,
        list_versions,
        load_settings,
        load_version,
        read_scores,
        read_selection,
        run_stage,
    )

__all__ = [
    "generate",
    "list_versions",
    "load_settings",
    "load_version",
    "read_scores",
    "read_selection",
    "run_stage",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("dreambooth_core.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
