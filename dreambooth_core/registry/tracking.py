"""The connection to MLflow: tracking URI, client, readable errors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_TRACKING_URI
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _use_tracking_uri

from dreambooth_core import files, locks
from dreambooth_core.errors import RegistryError, SettingsError
from dreambooth_core.logs import logger
from dreambooth_core.masking import scrubbed, without_secrets
from dreambooth_core.registry import location, outages, store_opening
from dreambooth_core.registry.store_uri import ARTIFACTS, SQLITE, STORE, sqlite_file, sqlite_uri
from dreambooth_core.workspace import Workspace

LOCK_TIMEOUT_S = 120.0

_SERVERS = ("http://", "https://")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


@dataclass(frozen=True)
class Tracking:
    """An MLflow store with the workspace's files for it.

    `home` is the workspace. `artifact_root` is the folder for the files of a new experiment, or
    None if the server decides. `lock` guards every find-or-create (MLflow has no lock); `cache`
    holds downloaded models.
    """

    uri: str
    home: Path
    artifact_root: Path | None
    lock: Path
    cache: Path

    @property
    def is_server(self) -> bool:
        """Whether the store is a server."""
        return self.uri.startswith(_SERVERS)

    @property
    def shown(self) -> str:
        """The address without credentials, for messages, logs and pages."""
        return without_secrets(self.uri)


def resolve_tracking(workspace: Workspace, *, uri: str | None = None) -> Tracking:
    """The store at `uri`, by default a SQLite file in the workspace.

    A relative SQLite path is relative to the workspace, not to the current folder. Raises
    SettingsError for a type of store that MLflow no longer writes.
    """
    home = workspace.root.absolute()
    resolved = _absolute(home, uri) if uri else sqlite_uri(home / STORE)
    return Tracking(
        uri=resolved,
        home=home,
        artifact_root=None if resolved.startswith(_SERVERS) else home / ARTIFACTS,
        lock=workspace.state / "locks" / "mlflow.lock",
        cache=workspace.state / "models",
    )


def _absolute(home: Path, uri: str) -> str:
    if uri.startswith(_SERVERS):
        return uri.rstrip("/")
    file = sqlite_file(uri)
    is_memory = uri.startswith(SQLITE) and file is None
    if is_memory or uri.split(":", 1)[0].split("+", 1)[0] not in _DATABASES:
        raise SettingsError(
            "MLFLOW_TRACKING_URI has an unsupported type of store",
            got=without_secrets(uri),
            allowed="http(s)://HOST:PORT, sqlite:///PATH, postgresql://...",
            hint="unset it to use mlflow.db in the project's folder",
        )
    return uri if file is None or file.is_absolute() else sqlite_uri(home / file)


@functools.lru_cache(maxsize=8)
def connect(tracking: Tracking) -> MlflowClient:
    """A client for the store, once it has opened.

    Raises RegistryError, within seconds, if the store is unreachable, cannot be opened, or keeps
    the files of another workspace.
    """
    store_opening.reach(tracking.uri)
    file = sqlite_file(tracking.uri)
    if file is not None:
        _create_whole(tracking, file)
    if tracking.is_server:
        outages.warn_once(tracking.shown)
    client = store_opening.open_store(tracking.uri)
    if file is not None:
        location.refuse_other_roots(file, home=tracking.home)
    return client


def examine(tracking: Tracking) -> str:
    """Open the store without creating it; its address. Raises RegistryError like `connect`."""
    file = sqlite_file(tracking.uri)
    if file is not None and not file.exists():
        store_opening.reach(tracking.uri)
        return f"{tracking.shown} (the first run creates it)"
    connect(tracking)
    return tracking.shown


def move_here(tracking: Tracking) -> list[str]:
    """Record this workspace as the place of the store's files; the roots that it replaces.

    Raises RegistryError, and changes nothing, if the store is not this workspace's or files are
    missing here.
    """
    file = sqlite_file(tracking.uri)
    if file is None or not file.exists():
        return []
    with mlflow_lock(tracking):
        moved = location.move_here(file, home=tracking.home)
    connect.cache_clear()
    return moved


def _create_whole(tracking: Tracking, path: Path) -> None:
    """Create a missing SQLite file under another name, and rename it once it has all tables.

    MLflow creates the tables one by one when it first opens a file. A kill in between would leave
    a file that MLflow cannot open.
    """
    if path.exists():
        return
    with locks.hold(tracking.lock.with_name("mlflow-create.lock"), timeout_s=LOCK_TIMEOUT_S):
        if path.exists():
            return
        files.remove_asides(path.parent)
        with files.atomic_file(path) as aside:
            aside.unlink()  # MLflow upgrades a file that exists, and creates one that does not
            store_opening.open_store(sqlite_uri(aside))


def fitting(value: str, limit: int) -> str:
    """The text, cut and marked if it is longer than a column of the store."""
    mark = " ... (cut)"
    return value if len(value) <= limit else value[: limit - len(mark)] + mark


@contextlib.contextmanager
def registry_errors(tracking: Tracking, *, doing: str) -> Iterator[None]:
    """Turn MLflow's exceptions into a RegistryError with the action and the store."""
    try:
        yield
    except MlflowException as error:
        text = scrubbed(str(error), tracking.uri)
        raise RegistryError(
            f"MLflow at {tracking.shown} failed while {doing}",
            got=text.splitlines()[0][:500] if text else type(error).__name__,
            hint="run `dreambooth doctor`, then the same command again: it skips finished work",
        ) from (error if text == str(error) else None)  # a traceback would quote the password


@contextlib.contextmanager
def as_default(tracking: Tracking) -> Iterator[None]:
    """Make the store MLflow's process-wide default inside the block.

    MLflow resolves `models:/m-...` there, whichever client it came from. Its own context manager
    also deletes MLFLOW_TRACKING_URI from the environment, so this one restores it.
    """
    outside = MLFLOW_TRACKING_URI.get()
    try:
        with _use_tracking_uri(tracking.uri):
            yield
    finally:
        if outside is not None:
            MLFLOW_TRACKING_URI.set(outside)


@contextlib.contextmanager
def mlflow_lock(tracking: Tracking) -> Iterator[None]:
    """Hold the workspace's MLflow lock, which serializes find-or-create across processes."""
    with locks.hold(tracking.lock, timeout_s=LOCK_TIMEOUT_S, on_wait=_log_waiting):
        yield


def _log_waiting(holder: str) -> None:
    logger.debug("waiting for %s, which writes to MLflow", holder)
