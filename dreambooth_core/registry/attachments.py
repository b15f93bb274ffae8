"""What a version has besides its files: a link from its logged model, and records in its run."""

from __future__ import annotations

import json

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from dreambooth_core import files
from dreambooth_core.records import RegisteredVersion
from dreambooth_core.registry import runs
from dreambooth_core.registry.tracking import Tracking, connect, registry_errors
from dreambooth_core.registry.versions import Candidate, artifact_folder, model_id_of


def attach(tracking: Tracking, registered: RegisteredVersion, candidate: Candidate) -> None:
    """Link the version from its logged model, and put its records among its run's artifacts.

    Also for a version that exists, as a kill may have come in between. Raises RegistryError.
    """
    client = connect(tracking)
    with registry_errors(tracking, doing=f"completing a version of {registered.name}"):
        version = client.get_model_version(registered.name, str(registered.version))
        _link_model(client, version)
    if version.run_id is None:
        return
    records = {
        "scores.json": files.pretty_json(candidate.scores.to_json()),
        "selection.json": files.pretty_json(candidate.selection.to_json()),
        "README.md": candidate.card,
    }
    for name, text in records.items():
        file = f"{artifact_folder(registered.version)}/{name}"
        runs.log_text(tracking, version.run_id, text, file)


def _link_model(client: MlflowClient, version: MlflowVersion) -> None:
    """Name the version in its logged model, as MLflow's server and `register_model` do."""
    model_id = model_id_of(version)
    known = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    entry = {"name": version.name, "version": str(version.version)}
    if entry not in known:
        tags = {MLFLOW_MODEL_VERSIONS: json.dumps([*known, entry])}
        client.set_logged_model_tags(model_id, tags)
