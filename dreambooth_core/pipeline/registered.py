"""The registered version of a subject; without torch, because every run looks it up."""

from __future__ import annotations

from collections.abc import Mapping

from dreambooth_core.errors import RegistryError, StageError, UnknownModelError
from dreambooth_core.pipeline.common import StageContext, confirmation_of, run_name
from dreambooth_core.records import (
    Checkpoint,
    ModelVersion,
    RegisteredVersion,
    Selection,
    TrainingRun,
)
from dreambooth_core.registry import aliases, runs, versions
from dreambooth_core.registry.tracking import Tracking, connect, resolve_tracking
from dreambooth_core.workspace import Workspace


def tracking_of(context: StageContext) -> Tracking:
    """The MLflow store of the context's workspace."""
    return resolve_tracking(Workspace(context.places.root), uri=context.tracking_uri)


def require_store(workspace: Workspace, env: Mapping[str, str]) -> None:
    """Raise RegistryError unless the MLflow store opens, before hours of work that need it later.

    An experiment of DVC's leaves no trace there and needs none.
    """
    if "DVC_EXP_NAME" not in env:
        connect(resolve_tracking(workspace, uri=env.get("MLFLOW_TRACKING_URI")))


def end_abandoned_runs(context: StageContext) -> None:
    """End the subject's MLflow runs that are still running; the caller holds its lock."""
    if not context.is_experiment:
        runs.end_abandoned(tracking_of(context), experiment=context.settings.model_name)


def describe(context: StageContext) -> ModelVersion:
    """The present or future version in the registry. Raises StageError without a selection."""
    selection, checkpoint = selected(context)
    own = context.fingerprint(
        "register",
        {
            "checkpoint": checkpoint.sha256,
            "selection": selection.to_json(),
            "evaluation": confirmation_of(context).harness.to_json(),
        },
    )
    return ModelVersion(
        name=context.settings.model_name,
        fingerprint=own,
        checkpoint=checkpoint.name,
        sha256=checkpoint.sha256,
    )


def selected(context: StageContext) -> tuple[Selection, Checkpoint]:
    """The selection and its checkpoint. Raises StageError if none is selected."""
    selection = Selection.read(context.places.stage_dir("select"))
    if selection.best is None:
        raise StageError("no checkpoint was selected", got=selection.rule)
    training = TrainingRun.read(context.places.stage_dir("train"))
    return selection, next(c for c in training.checkpoints if c.name == selection.best)


def find(context: StageContext) -> RegisteredVersion | None:
    """The registered version of the published record, or None if either is missing."""
    published = ModelVersion.read_if_there(context.places.stage_dir("register"))
    if published is None:
        return None
    return versions.find_version(
        tracking_of(context), name=published.name, fingerprint=published.fingerprint
    )


def get(context: StageContext) -> RegisteredVersion:
    """The registered version of the published record. Raises RegistryError if it is missing."""
    version = find(context)
    if version is None:
        subject = context.settings.name
        raise RegistryError(
            f"the best checkpoint of {subject} is not in the registry yet",
            hint=f"`dreambooth run {subject}` registers it",
        )
    return version


def training_run(context: StageContext) -> dict[str, str] | None:
    """The MLflow run of the published training: its ids, its name and its experiment's name."""
    training = TrainingRun.read_if_there(context.places.stage_dir("train"))
    if training is None:
        return None
    experiment = context.settings.model_name
    found = runs.find_run(
        tracking_of(context), experiment=experiment, fingerprint=training.fingerprint
    )
    return found and {
        "run_id": found.run_id,
        "name": run_name(training.method, training.fingerprint),
        "experiment_id": found.experiment_id,
        "experiment": experiment,
    }


def aliases_now(context: StageContext) -> dict[str, int]:
    """The versions behind champion and challenger; none before the first registration."""
    try:
        return versions.aliases_of(tracking_of(context), name=context.settings.model_name)
    except UnknownModelError:
        return {}


def info_of(context: StageContext) -> versions.VersionInfo | None:
    """The version that the present outputs are, with its tags; None if they are none.

    Outputs of other settings than the registered record's are no version: neither is a selection
    that was made again without registering it.
    """
    version = find(context)
    published = ModelVersion.read_if_there(context.places.stage_dir("register"))
    if version is None or published != describe(context):
        return None
    return versions.get_version(tracking_of(context), name=version.name, version=version.version)


def is_complete(context: StageContext) -> bool:
    """Whether the published version is in the registry and has passed its parity check."""
    version = find(context)
    if version is None:
        return False
    info = versions.get_version(tracking_of(context), name=version.name, version=version.version)
    return info.tags.get(aliases.PARITY) == aliases.PARITY_PASSED
