"""Addresses of MLflow stores. Imports no mlflow, which takes seconds."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

SQLITE = "sqlite"
ARTIFACTS = "mlartifacts"
"""Name of the folder for the files of runs and versions, in a workspace."""

STORE = "mlflow.db"
"""Name of the SQLite file, in a workspace."""


def sqlite_uri(file: Path) -> str:
    """The URI of a SQLite file, whatever characters its path has."""
    from sqlalchemy.engine import URL  # would delay every command

    if "?" in str(file):  # it would begin the query of the URI
        url = URL.create(SQLITE, database=file.as_uri(), query={"uri": "true"})
    else:
        url = URL.create(SQLITE, database=str(file))
    return url.render_as_string(hide_password=False)


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite URI; None for another kind of store, or one in memory."""
    from sqlalchemy.engine import make_url  # would delay every command

    if not uri.startswith(SQLITE):
        return None
    database = make_url(uri).database
    if not database or database == ":memory:":
        return None
    return local_path(database) or Path(database)


def is_plain(path: Path) -> bool:
    """Whether a path stays the same where MLflow decodes it like a URI."""
    return url2pathname(urlsplit(str(path)).path) == str(path)


def local_path(uri: str) -> Path | None:
    """The path of a file URI, or None."""
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None
