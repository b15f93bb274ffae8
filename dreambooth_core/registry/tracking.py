"""The connection to MLflow: tracking URI, client, readable errors."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_TRACKING_URI
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _use_tracking_uri

from dreambooth_core import files, locks
from dreambooth_core.errors import RegistryError, SettingsError
from dreambooth_core.workspace import Workspace

PING_TIMEOUT_S = 3.0
LOCK_TIMEOUT_S = 120.0

_SQLITE = "sqlite:///"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracking:
    """An MLflow store with the workspace's files for it.

    `artifact_root` is the folder for the files of a new experiment, or None if the server decides.
    `lock` guards every find-or-create (MLflow has no lock); `cache` holds downloaded models.
    """

    uri: str
    artifact_root: Path | None
    lock: Path
    cache: Path

    @property
    def is_server(self) -> bool:
        """Whether the store is a server."""
        return self.uri.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Ping:
    """The health of a store: reachable or not, seconds, and a text for `dreambooth doctor`."""

    ok: bool
    seconds: float
    text: str


def resolve_tracking(workspace: Workspace, *, uri: str | None = None) -> Tracking:
    """The store at `uri`, by default a SQLite file in the workspace.

    A relative SQLite path is relative to the workspace, not to the current folder. Raises
    SettingsError for a type of store that MLflow no longer writes.
    """
    resolved = _absolute(workspace, uri) if uri else f"{_SQLITE}{workspace.root / 'mlflow.db'}"
    server = resolved.startswith(("http://", "https://"))
    return Tracking(
        uri=resolved,
        artifact_root=None if server else workspace.root.absolute() / "mlartifacts",
        lock=workspace.state / "locks" / "mlflow.lock",
        cache=workspace.state / "models",
    )


def _absolute(workspace: Workspace, uri: str) -> str:
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/")
    if uri.split(":", 1)[0].split("+", 1)[0] not in _DATABASES:
        raise SettingsError(
            "MLFLOW_TRACKING_URI has an unsupported type of store",
            got=uri,
            allowed="http(s)://HOST:PORT, sqlite:///PATH, postgresql://...",
            hint="unset it to use mlflow.db in the project's folder",
        )
    if uri.startswith(_SQLITE) and not uri.startswith(f"{_SQLITE}/"):
        return f"{_SQLITE}{workspace.root.absolute() / uri.removeprefix(_SQLITE)}"
    return uri


def ping(tracking: Tracking) -> Ping:
    """Check whether the store is reachable, without MLflow's minutes of retries. Never raises."""
    began = time.monotonic()
    shown = without_password(tracking.uri)
    try:
        if tracking.is_server:
            _get_health(f"{tracking.uri}/health")
        elif not tracking.uri.startswith(_SQLITE):
            MlflowClient(tracking.uri).search_experiments(max_results=1)
        elif not Path(tracking.uri.removeprefix(_SQLITE)).parent.is_dir():
            raise OSError("its folder does not exist")
    except (OSError, MlflowException) as error:
        reason = getattr(error, "reason", None) or error
        return Ping(
            ok=False,
            seconds=time.monotonic() - began,
            text=f"MLflow at {shown} is unreachable: {reason}",
        )
    return Ping(ok=True, seconds=time.monotonic() - began, text=f"MLflow at {shown}")


def _get_health(url: str) -> None:
    """GET `url`; any status below 500 counts as healthy. Raises OSError."""
    try:
        with urllib.request.urlopen(url, timeout=PING_TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise


def without_password(uri: str) -> str:
    """The URI with its password, or a token in place of one, masked: for logs and screens."""
    masked = re.sub(r"://([^:/@]*:)?[^/]*@", lambda found: f"://{found[1] or ''}***@", uri)
    return re.sub(r"([?&](?:password|passwd|token|sslpassword)=)[^&]*", r"\1***", masked)


@functools.lru_cache(maxsize=8)
def connect(tracking: Tracking) -> MlflowClient:
    """A client for the store. Raises RegistryError within seconds if the store is unreachable."""
    answer = ping(tracking)
    if not answer.ok:
        raise RegistryError(
            answer.text,
            hint="start it (`dreambooth up`), or unset MLFLOW_TRACKING_URI to use a local file",
        )
    _create_whole(tracking)
    return MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)


def _create_whole(tracking: Tracking) -> None:
    """Create a missing SQLite file under another name, and rename it once it has all tables.

    MLflow creates the tables one by one when it first opens a file. A kill in between would leave
    a file that MLflow cannot open.
    """
    if not tracking.uri.startswith(_SQLITE):
        return
    path = Path(tracking.uri.removeprefix(_SQLITE))
    if path.exists():
        return
    with locks.hold(tracking.lock.with_name("mlflow-create.lock"), timeout_s=LOCK_TIMEOUT_S):
        if path.exists():
            return
        files.remove_asides(path.parent)
        with files.atomic_file(path) as aside:
            aside.unlink()  # MLflow upgrades a file that exists, and creates one that does not
            MlflowClient(tracking_uri=f"{_SQLITE}{aside}").search_experiments(max_results=1)


@contextlib.contextmanager
def registry_errors(tracking: Tracking, *, doing: str) -> Iterator[None]:
    """Turn MLflow's exceptions into a RegistryError with the action and the store."""
    try:
        yield
    except MlflowException as error:
        raise RegistryError(
            f"MLflow at {without_password(tracking.uri)} failed while {doing}",
            got=str(error).splitlines()[0][:500] if str(error) else type(error).__name__,
            hint="run `dreambooth doctor`, then the same command again: it skips finished work",
        ) from error


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
    _LOG.debug("waiting for %s, which writes to MLflow", holder)
