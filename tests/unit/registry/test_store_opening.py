"""Stores that cannot be opened: one sentence with the command that helps."""

from __future__ import annotations

import importlib.util
import socket
import sqlite3
import time

import pytest

from dreambooth_core.errors import RegistryError
from dreambooth_core.registry import store_opening
from dreambooth_core.registry import tracking as stores
from dreambooth_core.registry.tracking import resolve_tracking
from dreambooth_core.workspace import Workspace


def with_schema(file, revision: str) -> None:
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", [revision])


def test_schema_of_a_newer_mlflow_is_named(tracking, tmp_path) -> None:
    with_schema(tmp_path / "mlflow.db", "feedfacecafe")
    with pytest.raises(RegistryError, match=r"a newer MLflow made it.*feedfacecafe"):
        stores.connect(tracking)


def test_schema_of_an_older_mlflow_has_the_command_that_upgrades_it(tracking, tmp_path) -> None:
    with_schema(tmp_path / "mlflow.db", "451aebb31d03")
    with pytest.raises(RegistryError, match=r"an older MLflow.*mlflow db upgrade sqlite:///"):
        stores.connect(tracking)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(RegistryError, match=r"cannot be opened.*not a database"):
        stores.connect(resolve_tracking(Workspace(tmp_path)))


@pytest.mark.skipif(
    importlib.util.find_spec("psycopg2") is not None, reason="the driver is installed"
)
def test_missing_driver_has_the_command_that_installs_it(tmp_path) -> None:
    store = resolve_tracking(Workspace(tmp_path), uri="postgresql://ada:pl4nted@127.0.0.1/m")
    with pytest.raises(RegistryError, match=r"pip install .*\[postgres\]") as caught:
        stores.connect(store)
    assert "pl4nted" not in str(caught.value)


def test_a_database_that_is_not_there_is_noticed_within_seconds() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(OSError, match="refused"):
        store_opening._knock(f"postgresql://127.0.0.1:{port}/m")
    assert time.monotonic() - began < store_opening.TIMEOUT_S + 1


def test_examining_creates_no_store(tmp_path) -> None:
    store = resolve_tracking(Workspace(tmp_path))
    assert "the first run creates it" in stores.examine(store)
    assert list(tmp_path.iterdir()) == []
