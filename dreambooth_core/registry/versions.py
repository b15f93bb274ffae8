"""Versions of a registered model: register once per fingerprint, list, download.

A version's tags describe it. Registering a fingerprint again returns the same version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.exceptions import MlflowException

from dreambooth_core import files
from dreambooth_core.config import nearest
from dreambooth_core.errors import CorruptRecordError, UnknownModelError
from dreambooth_core.records import (
    BaseModelIdentity,
    Checkpoint,
    Interval,
    ModelVersion,
    RegisteredVersion,
    ScoreRow,
    Scores,
    Selection,
)
from dreambooth_core.registry import logged_models, package
from dreambooth_core.registry.package import Serving
from dreambooth_core.registry.runs import FINGERPRINT, FLOW_RUN, RunRef
from dreambooth_core.registry.tracking import (
    Tracking,
    as_default,
    connect,
    fitting,
    mlflow_lock,
    registry_errors,
)

TAG_LIMIT = 5000
"""The maximum length, in PostgreSQL, of a registered model's tag and of a description."""

_INTERVALS = "scores"
"""Tag of a version: the row of its checkpoint, with the intervals of the scores."""

_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
_REFERENCE = re.compile(r"^models:/(?P<name>[^/@]+)(@(?P<alias>[\w-]+)|/(?P<version>\d+))$")


@dataclass(frozen=True)
class Lineage:
    """The origin of a version: enough to reproduce it."""

    settings: Mapping[str, Any]
    data_sha256: str
    base_model: BaseModelIdentity
    dvc_hashes: Mapping[str, str]
    git_commit: str | None
    flow_run: str | None = None
    """The address of the Prefect run, if a server keeps it."""
    parent: Mapping[str, str] = field(default_factory=dict)
    """Tags that name the weights which the training started from."""
    choice: Mapping[str, str] = field(default_factory=dict)
    """Tags that say who chose the checkpoint by hand, when and why."""


@dataclass(frozen=True)
class Candidate:
    """A run's best checkpoint with everything that the registry stores.

    `export` is the folder of `models.weights.export_pipeline`; `card` is the model card in
    Markdown, and `description` its text without the hub's metadata.
    """

    record: ModelVersion
    checkpoint: Checkpoint
    row: ScoreRow
    """The scores of the checkpoint on fresh seeds."""
    scores: Scores
    selection: Selection
    export: Path
    serving: Serving
    lineage: Lineage
    card: str
    description: str
    prompt: str
    """The prompt of the photos, for the model's input example."""


@dataclass(frozen=True)
class VersionInfo:
    """A version with its tags, for `dreambooth compare` and the page."""

    version: RegisteredVersion
    aliases: tuple[str, ...]
    scores: Mapping[str, float]
    intervals: Mapping[str, Interval]
    settings: Mapping[str, Any]
    tags: Mapping[str, str]
    run_id: str | None
    """The run of its training."""

    @property
    def artifact_folder(self) -> str:
        """The folder of this version among the artifacts of its run."""
        return artifact_folder(self.version.version)

    @property
    def uri(self) -> str:
        """The reference that `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.version.name}/{self.version.version}"


def artifact_folder(version: int) -> str:
    """The folder of a version among the artifacts of its run."""
    return f"versions/{version}"


def find_version(tracking: Tracking, *, name: str, fingerprint: str) -> RegisteredVersion | None:
    """The version with this fingerprint, or None. Raises RegistryError if MLflow is unreachable."""
    client = connect(tracking)
    with registry_errors(tracking, doing=f"looking for a version of {name}"):
        found = client.search_model_versions(
            f"name = '{name}' AND tags.`{FINGERPRINT}` = '{fingerprint}'"
        )
    oldest = min(found, key=lambda version: int(version.version), default=None)
    return oldest and _registered(oldest)


def register_version(
    tracking: Tracking, run: RunRef, candidate: Candidate, *, scratch: Path
) -> RegisteredVersion:
    """Upload the best checkpoint and register it, once per fingerprint.

    `scratch` needs disk space for a second copy of the export. The version has no alias until its
    parity check passes. Raises RegistryError.
    """
    record = candidate.record
    there = find_version(tracking, name=record.name, fingerprint=record.fingerprint)
    if there is not None:
        return there
    model_id = _upload(tracking, run, candidate, scratch)
    client = connect(tracking)
    with mlflow_lock(tracking):
        there = find_version(tracking, name=record.name, fingerprint=record.fingerprint)
        if there is not None:
            return there  # another process registered it first
        doing = f"registering a version of {record.name}"
        with registry_errors(tracking, doing=doing), as_default(tracking):
            _ensure_registered_model(client, record.name)
            version = client.create_model_version(
                record.name,
                source=f"models:/{model_id}",
                run_id=run.run_id,
                tags=_tags(candidate),
                description=candidate.description,
                model_id=model_id,
            )
    return _registered(version)


def _upload(tracking: Tracking, run: RunRef, candidate: Candidate, scratch: Path) -> str:
    """Upload the candidate's files if necessary; returns the id of the logged model."""
    checkpoint = candidate.checkpoint
    digest = package.package_digest(candidate.export, candidate.serving)
    there = logged_models.find_model(tracking, run, checkpoint.sha256, upload=digest)
    if there is not None:
        return there.model_id
    metadata = {
        "fingerprint": candidate.record.fingerprint,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": checkpoint.sha256,
        "base_model": candidate.lineage.base_model.to_json(),
    }
    with package.packed(
        candidate.export,
        serving=candidate.serving,
        metadata=metadata,
        prompt=candidate.prompt,
        scratch=scratch,
    ) as saved:
        return logged_models.upload(
            tracking, run, checkpoint=checkpoint, saved_model=saved, digest=digest
        )


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description="The best checkpoints of one subject.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _tags(candidate: Candidate) -> dict[str, str]:
    """Everything about a version, as text; values are cut at TAG_LIMIT."""
    lineage, record = candidate.lineage, candidate.record
    tags = {
        FINGERPRINT: record.fingerprint,
        "checkpoint": record.checkpoint,
        "sha256": record.sha256,
        "qualified": str(candidate.selection.qualified).lower(),
        "rule": candidate.selection.rule,
        "settings": files.canonical_json(lineage.settings),
        "settings_sha256": files.digest_of(lineage.settings),
        "data_sha256": lineage.data_sha256,
        "base_model": lineage.base_model.name,
        "base_model_revision": lineage.base_model.revision or "",
        "base_model_sha256": lineage.base_model.sha256,
        "git_commit": lineage.git_commit or "",
        FLOW_RUN: lineage.flow_run or "",
        **lineage.parent,
        **lineage.choice,
        **{f"dvc.{name}": digest for name, digest in lineage.dvc_hashes.items()},
        **logged_models.score_tags(candidate.row),
        _INTERVALS: files.canonical_json(candidate.row.to_json()),
    }
    return {key: fitting(value, TAG_LIMIT) for key, value in tags.items() if value}


# ---- reading ------------------------------------------------------------------------------------


def list_versions(tracking: Tracking, *, name: str) -> list[VersionInfo]:
    """All versions of a model, oldest first. Raises RegistryError for an unknown model."""
    client = connect(tracking)
    aliases = aliases_of(tracking, name=name)
    with registry_errors(tracking, doing=f"listing the versions of {name}"):
        found = client.search_model_versions(f"name = '{name}'")
    return [_info(version, aliases) for version in sorted(found, key=lambda v: int(v.version))]


def get_version(tracking: Tracking, *, name: str, version: int) -> VersionInfo:
    """One version. Raises RegistryError with the existing versions if it is unknown."""
    versions = list_versions(tracking, name=name)
    found = next((info for info in versions if info.version.version == version), None)
    if found is None:
        raise UnknownModelError(
            f"{name} has no version {version}",
            allowed=", ".join(str(info.version.version) for info in versions) or "none yet",
            hint=f"the newest is {versions[-1].uri}" if versions else None,
        )
    return found


def registered_names(tracking: Tracking) -> list[str]:
    """The names of all registered models. Raises RegistryError if MLflow is unreachable."""
    client, names, page = connect(tracking), list[str](), None
    with registry_errors(tracking, doing="listing the registered models"):
        while True:
            found = client.search_registered_models(page_token=page)
            names += [model.name for model in found]
            page = found.token
            if not page:
                return sorted(names)


def aliases_of(tracking: Tracking, *, name: str) -> dict[str, int]:
    """The model's aliases with their versions. Raises RegistryError."""
    client = connect(tracking)
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            with registry_errors(tracking, doing=f"reading {name}"):
                raise
        known = registered_names(tracking)
        near = next((k for k in known if k.endswith(f"-{name}")), None) or nearest(name, known)
        raise UnknownModelError(
            f"the registry has no model {name!r}",
            allowed=", ".join(known) or "none is registered yet",
            hint=f"did you mean models:/{near}@champion?"
            if near
            else "`dreambooth run SUBJECT` registers the first version of a subject",
        ) from None
    # SQLite returns integers here, a server strings.
    return {alias: int(version) for alias, version in aliases.items()}


def resolve_reference(tracking: Tracking, reference: str) -> VersionInfo:
    """Resolve `models:/NAME@ALIAS` or `models:/NAME/3`. Raises RegistryError."""
    match = _REFERENCE.match(reference)
    if match is None:
        raise UnknownModelError(
            "not a model reference",
            got=reference,
            allowed="models:/NAME@champion, models:/NAME@challenger or models:/NAME/3",
        )
    name = match["name"]
    if match["version"]:
        return get_version(tracking, name=name, version=int(match["version"]))
    aliases = aliases_of(tracking, name=name)
    if match["alias"] not in aliases:
        near = nearest(match["alias"], aliases)
        raise UnknownModelError(
            f"{name} has no {match['alias']}",
            allowed=", ".join(f"{alias} (version {v})" for alias, v in sorted(aliases.items()))
            or "it has no alias yet",
            hint=f"did you mean models:/{name}@{near}?"
            if near
            else f"name a version, such as models:/{name}/{max(aliases.values(), default=1)}",
        )
    return get_version(tracking, name=name, version=aliases[match["alias"]])


def fetch(tracking: Tracking, reference: str) -> Path:
    """The local pipeline folder of a version, downloaded and verified.

    Downloads once into the workspace's cache, also from a local store, so that changes to these
    files cannot change a registered model. Raises RegistryError.
    """
    info = resolve_reference(tracking, reference)
    client = connect(tracking)
    with registry_errors(tracking, doing=f"reading {info.uri}"):
        version = client.get_model_version(info.version.name, str(info.version.version))
    source, target = version.source, tracking.cache / model_id_of(version)
    if not target.is_dir():
        with (
            registry_errors(tracking, doing=f"downloading {info.uri}"),
            as_default(tracking),
            files.atomic_dir(target) as aside,
        ):
            mlflow.artifacts.download_artifacts(
                source, dst_path=str(aside), tracking_uri=tracking.uri
            )
            _verify(aside, info.uri)
    return target / "artifacts" / package.ARTIFACT


def model_id_of(version: MlflowVersion) -> str:
    """The logged model of a version: its source is `models:/MODEL_ID`."""
    return (version.source or "").rsplit("/", 1)[-1]


def _verify(model: Path, uri: str) -> None:
    """Compare every file of the pipeline with the hashes in MLmodel. Raises CorruptRecordError."""
    expected = (package.load_spec(model).metadata or {})["files"]
    wrong = files.mismatches(model / "artifacts" / package.ARTIFACT, expected)
    if wrong:
        raise CorruptRecordError(
            f"the files of {uri} differ from the upload",
            got=", ".join(wrong[:5]),
            hint="run the subject again after deleting the version, or restore the store",
        )


def _info(version: MlflowVersion, aliases: Mapping[str, int]) -> VersionInfo:
    registered = _registered(version)
    tags: dict[str, str] = dict(version.tags)
    return VersionInfo(
        version=registered,
        aliases=tuple(sorted(a for a, number in aliases.items() if number == registered.version)),
        scores={
            key.removeprefix("score."): float(value)
            for key, value in sorted(tags.items())
            if key.startswith("score.")
        },
        intervals=_intervals(tags.get(_INTERVALS)),
        settings=_settings(tags.get("settings", "{}")),
        tags=tags,
        run_id=version.run_id,
    )


def _intervals(text: str | None) -> dict[str, Interval]:
    """The scores in a tag with their intervals; versions of earlier releases have none."""
    if text is None:
        return {}
    row = ScoreRow.model_validate_json(text)
    return row.intervals()


def _settings(text: str) -> dict[str, Any]:
    """The settings in a tag, or none if they were cut."""
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _registered(version: MlflowVersion) -> RegisteredVersion:
    tags = version.tags
    return RegisteredVersion(
        name=version.name,
        version=int(version.version),
        fingerprint=tags.get(FINGERPRINT, ""),
        checkpoint=tags.get("checkpoint", ""),
        sha256=tags.get("sha256", ""),
        qualified=tags.get("qualified") == "true",
    )
