"""The environment of every process that a command starts: read and completed here, at the edge."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dreambooth_core.errors import SettingsError

QUIET: Mapping[str, str] = {
    # No component calls home; each of these words was found by tracing look-ups.
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    # Results are JSON: with the default, whoever can write them runs code here.
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
    # Spinning OpenMP threads of several processes on few cores slow one another tenfold.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}


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
        **QUIET,
        "PREFECT_HOME": str(root / ".prefect"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}",
        **more,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return dict(os.environ)
