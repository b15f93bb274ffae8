"""Renames a subject's registered model and experiment; versions, aliases, votes and runs stay."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from dreambooth_core.errors import RegistryError
from dreambooth_core.registry.store_uri import sqlite_file
from dreambooth_core.registry.tracking import Tracking, connect, mlflow_lock, registry_errors


def has_store(tracking: Tracking) -> bool:
    """Whether there is a store: the first run creates the one in the project's folder."""
    file = sqlite_file(tracking.uri)
    return file is None or file.exists()


def refuse_taken(tracking: Tracking, name: str) -> None:
    """Raise RegistryError if a registered model or an experiment has the name."""
    client = connect(tracking)
    with registry_errors(tracking, doing=f"looking for {name}"):
        names = _experiments(client, name)
        taken = "model" if _has_model(client, name) else "experiment" if names else None
    if taken is not None:
        raise RegistryError(
            f"the registry already has the {taken} {name}, of an earlier subject",
            got=tracking.shown,
            hint="choose another name, or delete it in MLflow's pages",
        )


def rename(tracking: Tracking, old: str, new: str) -> bool:
    """Rename what exists; return whether there was a registered model. Can be repeated."""
    client = connect(tracking)
    with mlflow_lock(tracking), registry_errors(tracking, doing=f"renaming {old} to {new}"):
        for experiment in _experiments(client, old):
            client.rename_experiment(experiment, new)
        is_registered = _has_model(client, old)
        if is_registered:
            client.rename_registered_model(old, new)
    return is_registered


def _has_model(client: MlflowClient, name: str) -> bool:
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _experiments(client: MlflowClient, name: str) -> list[str]:
    """The experiment of that name, deleted or not."""
    found = client.search_experiments(view_type=ViewType.ALL, filter_string=f"name = '{name}'")
    return [experiment.experiment_id for experiment in found]
