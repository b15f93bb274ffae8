"""Where MLflow is, and how to reach it: the tracking URI, the client, errors in plain words."""

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
    """An MLflow store: its URI, and what this workspace keeps beside it.

    `artifact_root` is where a new experiment's files go; None where the server decides. `lock`
    guards every find-or-create (MLflow has none); `cache` holds downloaded models.
    """

    uri: str
    artifact_root: Path | None
    lock: Path
    cache: Path

    @property
    def is_server(self) -> bool:
        """Whether it is reached over HTTP."""
        return self.uri.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Ping:
    """Whether a store answers, in how many seconds, and in words for `dreambooth doctor`."""

    ok: bool
    seconds: float
    text: str


def resolve_tracking(workspace: Workspace, *, uri: str | None = None) -> Tracking:
    """The store that `uri` names; without one, a SQLite file in the workspace.

    A relative SQLite path is relative to the workspace, not to the folder that a process happens
    to run in. Raises SettingsError for a kind of store that MLflow no longer writes.
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
            "MLFLOW_TRACKING_URI names a store that cannot be used",
            got=uri,
            allowed="http(s)://HOST:PORT, sqlite:///PATH, postgresql://...",
            hint="unset it to use mlflow.db in the project's folder",
        )
    if uri.startswith(_SQLITE) and not uri.startswith(f"{_SQLITE}/"):
        return f"{_SQLITE}{workspace.root.absolute() / uri.removeprefix(_SQLITE)}"
    return uri


def ping(tracking: Tracking, *, timeout_s: float = PING_TIMEOUT_S) -> Ping:
    """Ask whether the store answers, without MLflow's minutes of retries. Never raises."""
    began = time.monotonic()
    shown = without_password(tracking.uri)
    try:
        if tracking.is_server:
            _knock(f"{tracking.uri}/health", timeout_s)
        elif not tracking.uri.startswith(_SQLITE):
            MlflowClient(tracking.uri).search_experiments(max_results=1)
        elif not Path(tracking.uri.removeprefix(_SQLITE)).parent.is_dir():
            raise OSError("its folder does not exist")
    except (OSError, MlflowException) as error:
        reason = getattr(error, "reason", None) or error
        return Ping(
            ok=False,
            seconds=time.monotonic() - began,
            text=f"MLflow at {shown} does not answer: {reason}",
        )
    return Ping(ok=True, seconds=time.monotonic() - began, text=f"MLflow at {shown}")


def _knock(url: str, timeout_s: float) -> None:
    """GET `url`; any answer below 500 means that a server is there. Raises OSError."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s):
            return
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise


def without_password(uri: str) -> str:
    """The URI with a password in it masked, fit for a log."""
    return re.sub(r"(://[^:/@]+:)[^@/]+@", r"\1***@", uri)


def connect(tracking: Tracking) -> MlflowClient:
    """A client for the store. Raises RegistryError within seconds when nothing answers."""
    return _connect(tracking)


@functools.lru_cache(maxsize=8)
def _connect(tracking: Tracking) -> MlflowClient:
    answer = ping(tracking)
    if not answer.ok:
        raise RegistryError(
            answer.text,
            hint="start it (`dreambooth up`), or unset MLFLOW_TRACKING_URI to use a local file",
        )
    _create_whole(tracking)
    return MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)


def _create_whole(tracking: Tracking) -> None:
    """Create a missing SQLite file aside, and rename it when all its tables are there.

    MLflow creates tables one by one when it first opens a file: a process killed meanwhile would
    leave a file that no process can open again.
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
def in_plain_words(tracking: Tracking, *, doing: str) -> Iterator[None]:
    """Turn MLflow's exceptions into a RegistryError that says what was being done and where."""
    try:
        yield
    except MlflowException as error:
        raise RegistryError(
            f"MLflow at {without_password(tracking.uri)} failed while {doing}",
            got=str(error).splitlines()[0][:500] if str(error) else type(error).__name__,
            hint="see `dreambooth doctor`, then run again: what is done is not done twice",
        ) from error


@contextlib.contextmanager
def as_default(tracking: Tracking) -> Iterator[None]:
    """Make the store MLflow's process-wide default for a while.

    MLflow looks up `models:/m-...` there, whatever client was asked. Its own way back would also
    delete MLFLOW_TRACKING_URI from the environment, so that is put back here.
    """
    outside = MLFLOW_TRACKING_URI.get()
    try:
        with _use_tracking_uri(tracking.uri):
            yield
    finally:
        if outside is not None:
            MLFLOW_TRACKING_URI.set(outside)


@contextlib.contextmanager
def alone(tracking: Tracking) -> Iterator[None]:
    """Hold the workspace's MLflow lock: find-or-create of separate processes takes turns."""
    with locks.hold(tracking.lock, timeout_s=LOCK_TIMEOUT_S, on_wait=_say_waiting):
        yield


def _say_waiting(holder: str) -> None:
    _LOG.debug("waiting for %s, which writes to MLflow", holder)
