"""Opening an MLflow store: is it there, is its driver installed, does its schema fit."""

from __future__ import annotations

import re
import shlex
import socket
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from mlflow import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from dreambooth_core.errors import RegistryError
from dreambooth_core.masking import scrubbed, without_secrets, without_userinfo
from dreambooth_core.registry.store_uri import sqlite_file

TIMEOUT_S = 3.0

_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_START = "start it (`dreambooth up`), or unset MLFLOW_TRACKING_URI to use a local file"
_EXTRAS = {"psycopg2": 'pip install "dreambooth-pipeline[postgres]"'}
_REFUSALS = ("code 401", "code 403")
_LOG_IN = (
    "export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or put both into the address: "
    "http://USER:PASSWORD@HOST:PORT"
)
_MIGRATIONS = Path(mlflow.__file__).parent / "store" / "db_migrations"
_OTHER_SCHEMA = re.compile(r"found version (?P<found>\w+)")


def reach(uri: str) -> None:
    """Raise RegistryError if nobody answers at `uri`, without MLflow's minutes of retries."""
    file = sqlite_file(uri)
    try:
        if uri.startswith(("http://", "https://")):
            _get_health(f"{uri}/health")
        elif file is None:
            _require_driver(uri)
            _knock(uri)
        elif not file.parent.is_dir():
            raise OSError(f"its folder {file.parent} does not exist")
    except (OSError, ArgumentError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise RegistryError(
            f"MLflow at {without_secrets(uri)} is unreachable: {scrubbed(str(reason), uri)}",
            hint=_START,
        ) from None


def _get_health(url: str) -> None:
    """GET `url`; any status below 500 counts as healthy. Raises OSError."""
    try:
        with urllib.request.urlopen(without_userinfo(url), timeout=TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise


def _require_driver(uri: str) -> None:
    """Raise RegistryError with the command that installs the database's driver."""
    try:
        make_url(uri).get_dialect().import_dbapi()
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        name = getattr(error, "name", None) or str(error)
        raise RegistryError(
            f"MLflow's store at {without_secrets(uri)} needs a driver that is not installed",
            got=f"no package {name}",
            hint=_EXTRAS.get(name, f"install the package that provides {name}"),
        ) from None


def _knock(uri: str) -> None:
    url = make_url(uri)
    port = url.port or _PORTS.get(url.get_backend_name())
    if url.host and port and not url.host.startswith("/"):
        socket.create_connection((url.host, port), timeout=TIMEOUT_S).close()


def open_store(uri: str) -> MlflowClient:
    """A client whose store has answered. Raises RegistryError."""
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # databases and their drivers raise many types
        raise _as_error(uri, scrubbed(str(error) or type(error).__name__, uri)) from None
    return client


def _as_error(uri: str, text: str) -> RegistryError:
    what = f"MLflow's store at {without_secrets(uri)} cannot be opened"
    if any(sign in text for sign in _REFUSALS):
        what = f"MLflow at {without_secrets(uri)} asks for a user and a password"
        return RegistryError(what, got=text.splitlines()[0][:500], hint=_LOG_IN)
    other = _OTHER_SCHEMA.search(text)
    if other is None:
        hint = "check the file or the database, or unset MLFLOW_TRACKING_URI to use a local file"
        return RegistryError(what, got=text.splitlines()[0][:500], hint=hint)
    if not _is_known(other["found"]):
        return RegistryError(
            f"{what}: a newer MLflow made it",
            got=f"schema {other['found']}, unknown to MLflow {mlflow.__version__}",
            hint="install the MLflow that made it, or restore a backup of the store",
        )
    return RegistryError(
        f"{what}: an older MLflow made it",
        got=f"schema {other['found']}",
        hint=f"back it up, then `mlflow db upgrade {_pasted(uri)}`",
    )


def _is_known(revision: str) -> bool:
    """Whether the installed MLflow has the migration to a schema."""
    try:
        ScriptDirectory(str(_MIGRATIONS)).get_revision(revision)
    except CommandError:
        return False
    return True


def _pasted(uri: str) -> str:
    """The address for a command line; by its variable if it has a password."""
    return '"$MLFLOW_TRACKING_URI"' if without_secrets(uri) != uri else shlex.quote(uri)
