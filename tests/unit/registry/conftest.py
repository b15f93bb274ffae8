"""A fresh SQLite store per test: its schema is made once (seconds) and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dreambooth_core.registry import runs
from dreambooth_core.registry.runs import RunRef
from dreambooth_core.registry.tracking import Tracking, resolve_tracking
from dreambooth_core.workspace import Workspace
from tests.unit.registry.examples import MODEL


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def tracking(tmp_path: Path, empty_store: Path) -> Tracking:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return resolve_tracking(Workspace(tmp_path))


@pytest.fixture
def run(tracking: Tracking) -> RunRef:
    return runs.find_or_create_run(
        tracking, experiment=MODEL, fingerprint="a" * 64, name="full 300 steps"
    )
