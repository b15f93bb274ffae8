"""The environment of every process that a command starts: read and completed here, at the edge."""

from __future__ import annotations

import os
from pathlib import Path

from dreambooth_core.errors import SettingsError
from dreambooth_core.quiet import quiet


def find_workspace(start: Path) -> Path:
    """The nearest folder at or above `start` that holds a params.yaml. Raises SettingsError."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise SettingsError(
        f"neither {start} nor a folder above it holds a params.yaml",
        hint="change into the project's folder, or give it with --workspace",
    )


def complete(root: Path, **more: str) -> dict[str, str]:
    """Put the defaults of a workspace into this process's environment, and return a copy of it.

    Prefect and MLflow read it while they are imported: call this first. What is set already stays.
    """
    defaults = {
        **quiet(),
        "PREFECT_HOME": str(root / ".prefect"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}",
        **more,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return dict(os.environ)
