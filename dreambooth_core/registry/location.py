"""Where a local store keeps its files: MLflow records absolute paths, and a workspace may move.

After `mv` the recorded folder is gone, and after `cp -r` it is the original's. A store with such
paths is refused before anything is written; `dreambooth doctor --repair` records the new place.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun

from dreambooth_core.errors import RegistryError
from dreambooth_core.registry.store_uri import ARTIFACTS, local_path, sqlite_uri

_REPAIR = "dreambooth doctor --repair"
_PLACES: tuple[tuple[Any, str], ...] = (
    (SqlExperiment, "artifact_location"),
    (SqlRun, "artifact_uri"),
    (SqlLoggedModel, "artifact_location"),
    (SqlModelVersion, "source"),
    (SqlModelVersion, "storage_location"),
)
"""Every column of MLflow's tables that holds the address of files."""


def refuse_other_roots(file: Path, *, home: Path) -> None:
    """Raise RegistryError if the store in `file` keeps files of another workspace."""
    engine = _engine(file)
    with engine.connect() as connection:
        others = sorted(_other_roots(connection, home))
    engine.dispose()
    if others:
        raise RegistryError(
            "the MLflow store keeps its files in another folder than this workspace's",
            got=", ".join(str(local_path(root)) for root in others),
            allowed=str(home / ARTIFACTS),
            hint=_hint(file, home=home, root=others[0]),
        )


def refuse_outside(uri: str, *, home: Path, store: str) -> None:
    """Raise RegistryError for the address of files in a local folder outside the workspace."""
    path = local_path(uri)
    if path is None or path.resolve().is_relative_to(home.resolve()):
        return
    raise RegistryError(
        f"MLflow at {store} keeps its files in a local folder outside this workspace",
        got=str(path),
        allowed=f"a folder in {home}, or a server that takes the files itself",
        hint="start the server with `--serve-artifacts` and `--artifacts-destination`, or, if this "
        f"project was moved or copied, stop the server and run `{_REPAIR}`",
    )


def move_here(file: Path, *, home: Path) -> list[str]:
    """Replace the recorded roots by this workspace's, in one transaction; return them.

    Raises RegistryError if the store lies outside the workspace or files are missing here.
    """
    engine = _engine(file)
    own = (home / ARTIFACTS).as_uri()
    with engine.begin() as connection:
        others = sorted(_other_roots(connection, home))
        if others and not _is_inside(file, home):
            raise RegistryError(
                "the MLflow store belongs to another workspace",
                got=str(file.resolve()),
                allowed=f"a store in {home}",
                hint=_hint(file, home=home, root=others[0]),
            )
        for root in others:
            _require_files(connection, root, home=home)
            for table, column in _PLACES:
                _replace(connection, getattr(table, column), old=root, new=own)
    engine.dispose()
    return [str(local_path(root)) for root in others]


def _engine(file: Path) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(sqlite_uri(file))


def _other_roots(connection: sqlalchemy.Connection, home: Path) -> set[str]:
    """The addresses of recorded artifact folders that are not this workspace's."""
    found = connection.scalars(sqlalchemy.select(SqlExperiment.artifact_location))
    roots = {str(uri).rpartition("/")[0] for uri in found if uri}
    own = (home / ARTIFACTS).resolve()
    return {root for root in roots if _is_artifacts(root) and _resolved(root) != own}


def _is_artifacts(root: str) -> bool:
    """Whether this project made the folder; MLflow's own default is never written to."""
    path = local_path(root)
    return path is not None and path.name == ARTIFACTS


def _resolved(root: str) -> Path | None:
    path = local_path(root)
    return path and path.resolve()


def _is_inside(file: Path, home: Path) -> bool:
    return file.resolve().is_relative_to(home.resolve())


def _hint(file: Path, *, home: Path, root: str) -> str:
    if _is_inside(file, home):
        return f"if this project was moved or copied, run `{_REPAIR}`"
    other = local_path(root)
    where = other.parent if other else "that workspace"
    return (
        f"work in {where}, or run `dreambooth up` there and set MLFLOW_TRACKING_URI to a server "
        "that takes the files itself (`mlflow server --serve-artifacts`)"
    )


def _require_files(connection: sqlalchemy.Connection, root: str, *, home: Path) -> None:
    """Raise RegistryError if this workspace lacks the files of a registered version."""
    missing = [old for old, here in _versions(connection, root, home) if not here.exists()]
    if missing:
        raise RegistryError(
            "files of registered versions are missing in this workspace",
            got=", ".join(str(path) for path in missing[:3]),
            hint=f"copy them first: `cp -r {shlex.quote(f'{local_path(root)}/.')} "
            f"{shlex.quote(str(home / ARTIFACTS))}`",
        )


def _versions(
    connection: sqlalchemy.Connection, root: str, home: Path
) -> Iterator[tuple[Path, Path]]:
    """The recorded folder of each version below `root`, and its place in this workspace."""
    base = local_path(root)
    for uri in connection.scalars(sqlalchemy.select(SqlModelVersion.storage_location)):
        path = local_path(str(uri or ""))
        if path and base and path.is_relative_to(base):
            yield path, home / ARTIFACTS / path.relative_to(base)


def _replace(connection: sqlalchemy.Connection, column: Any, *, old: str, new: str) -> None:
    """Replace the beginning of every address below the folder `old`."""
    rest = sqlalchemy.func.substr(column, len(old) + 1)
    connection.execute(
        sqlalchemy.update(column.class_)
        .where(sqlalchemy.func.substr(column, 1, len(old) + 1) == f"{old}/")
        .values({column.key: new + rest})
    )
