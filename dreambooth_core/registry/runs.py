"""The MLflow run of a training: found or created by fingerprint, without duplicate entries.

All processes of a training (trainer, evaluation, registration, a rerun after a kill) write into the
same run, and writing something again adds no second entry.
"""

from __future__ import annotations

import hashlib
import io
import platform
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, Experiment, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME
from mlflow.utils.time import get_current_time_millis
from mlflow.utils.validation import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)
from PIL import Image

from dreambooth_core.config import flatten
from dreambooth_core.errors import SettingsError
from dreambooth_core.registry.location import refuse_outside
from dreambooth_core.registry.store_uri import sqlite_file
from dreambooth_core.registry.tracking import (
    Tracking,
    connect,
    fitting,
    mlflow_lock,
    registry_errors,
)

_SOURCE = "dreambooth"
_KIND, _TRAINING = "mlflow.experimentKind", "custom_model_development"
"""MLflow's pages open an experiment of this kind in the view of training runs, others in that of
agents."""
_RUN_ADDRESS_LIMIT = 200

GIT_COMMIT = MLFLOW_GIT_COMMIT
"""Tag of a run: the commit of the workspace."""

WORKSPACE = "dreambooth.workspace"
"""Tag of a run: the machine and the folder that it was last written from."""

FINGERPRINT = "dreambooth.fingerprint"
"""Tag of a run, a logged model and a model version: the fingerprint of its work."""

DEVICE = "dreambooth.device"
"""Tag of a run: what it trained on."""

FLOW_RUN = "prefect.flow_run"
"""Tag of a version: the page of the Prefect run that registered it."""

DIGEST_LENGTH = 36
"""MLflow's limit for the digest of a data set."""


@dataclass(frozen=True)
class RunRef:
    """A training's run; `created` is false if it existed before."""

    run_id: str
    experiment_id: str
    created: bool


def experiment_id(tracking: Tracking, name: str) -> str:
    """Find, create or restore the experiment `name`. Raises RegistryError."""
    client = connect(tracking)
    with registry_errors(tracking, doing=f"opening experiment {name}"):
        found = client.get_experiment_by_name(name)
        if found is None:
            found = client.get_experiment(_create_experiment(client, tracking, name))
        refuse_outside(found.artifact_location, home=tracking.home, store=tracking.shown)
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if _KIND not in found.tags:
            client.set_experiment_tag(found.experiment_id, _KIND, _TRAINING)
        return found.experiment_id


def _create_experiment(client: MlflowClient, tracking: Tracking, name: str) -> str:
    root = tracking.artifact_root
    location = None if root is None else (root / name).as_uri()
    if location and sqlite_file(tracking.uri) is None:  # SQLite limits no text
        _require_short(location)
    try:
        return client.create_experiment(
            name,
            artifact_location=location,
            tags={_KIND: _TRAINING},
        )
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id  # another machine created it first


def _require_short(location: str) -> None:
    """Raise SettingsError if the addresses of runs would not fit their column."""
    longest = f"{location}/{'0' * 32}/artifacts"
    if len(longest) > _RUN_ADDRESS_LIMIT:
        raise SettingsError(
            "the path of this project is too long for a store in a database",
            got=f"{len(longest)} characters for the address of a run's files",
            allowed=f"{_RUN_ADDRESS_LIMIT}",
            hint="move the project to a folder with a shorter path, or use an MLflow server",
        )


def find_run(tracking: Tracking, *, experiment: str, fingerprint: str) -> RunRef | None:
    """The run of a training, or None. Raises RegistryError if the store is unreachable.

    The oldest, in case two machines created one each at the same time.
    """
    client = connect(tracking)
    with registry_errors(tracking, doing=f"looking for the run of {experiment}"):
        home: Experiment | None = client.get_experiment_by_name(experiment)
        if home is None:
            return None
        refuse_outside(home.artifact_location, home=tracking.home, store=tracking.shown)
        found = client.search_runs(
            [home.experiment_id],
            filter_string=f"tags.`{FINGERPRINT}` = '{fingerprint}'",
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            max_results=1,
        )
    return RunRef(found[0].info.run_id, home.experiment_id, created=False) if found else None


def find_or_create_run(
    tracking: Tracking, *, experiment: str, fingerprint: str, name: str
) -> RunRef:
    """Find or create the run with this fingerprint. Raises RegistryError."""
    with mlflow_lock(tracking):
        there = find_run(tracking, experiment=experiment, fingerprint=fingerprint)
        if there is not None:
            return there
        home = experiment_id(tracking, experiment)
        with registry_errors(tracking, doing=f"creating the run {name}"):
            own = {FINGERPRINT: fingerprint, WORKSPACE: _workspace(tracking)}
            tags = resolve_tags({MLFLOW_SOURCE_NAME: _SOURCE, **own})
            run = connect(tracking).create_run(home, run_name=name, tags=tags)
    return RunRef(run.info.run_id, home, created=True)


def _workspace(tracking: Tracking) -> str:
    return fitting(f"{platform.node()}:{tracking.home}", MAX_TAG_VAL_LENGTH)


def resume(tracking: Tracking, run: RunRef) -> None:
    """Mark a run as running again, in this workspace."""
    set_status(tracking, run, "RUNNING")
    log_tags(tracking, run, {WORKSPACE: _workspace(tracking)})


def end_abandoned(tracking: Tracking, *, experiment: str) -> None:
    """Mark runs of this workspace as killed that are still running, though nothing trains.

    The caller holds the subject's lock. A killed trainer cannot set the status, nor can one that
    ends while MLflow is unreachable.
    """
    client = connect(tracking)
    with registry_errors(tracking, doing=f"looking for abandoned runs of {experiment}"):
        home = client.get_experiment_by_name(experiment)
        found = [] if home is None else client.search_runs(
            [home.experiment_id], filter_string="attributes.status = 'RUNNING'"
        )  # fmt: skip
    for run in found:
        if run.data.tags.get(WORKSPACE) == _workspace(tracking):
            ref = RunRef(run.info.run_id, run.info.experiment_id, created=False)
            set_status(tracking, ref, "KILLED")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run in words and times: milliseconds since 1970, and None if it logged no loss."""

    run_id: str
    experiment_id: str
    name: str
    began_ms: int
    trained_ms: int | None
    tags: Mapping[str, str]


def facts_of(tracking: Tracking, run_id: str) -> RunFacts:
    """What a run says of itself. Raises RegistryError."""
    client = connect(tracking)
    with registry_errors(tracking, doing="reading a run"):
        run = client.get_run(run_id)
        losses = client.get_metric_history(run_id, "loss")
    return RunFacts(
        run_id=run_id,
        experiment_id=run.info.experiment_id,
        name=run.info.run_name or run_id,
        began_ms=run.info.start_time,
        trained_ms=max((metric.timestamp for metric in losses), default=None),
        tags=run.data.tags,
    )


# ---- content of a run ---------------------------------------------------------------------------


def log_params(tracking: Tracking, run: RunRef, values: Mapping[str, Any]) -> None:
    """Log settings as params. MLflow's params are final, so existing keys stay."""
    client = connect(tracking)
    with registry_errors(tracking, doing="writing the settings"):
        known = client.get_run(run.run_id).data.params
        new = [
            Param(k, fitting(str(v), MAX_PARAM_VAL_LENGTH))
            for k, v in flatten(values).items()
            if k not in known
        ]
        for batch in batches(new, MAX_PARAMS_TAGS_PER_BATCH):
            client.log_batch(run.run_id, params=batch)


def log_tags(tracking: Tracking, run: RunRef, tags: Mapping[str, str]) -> None:
    """Set tags of a run; replaces existing ones."""
    client = connect(tracking)
    with registry_errors(tracking, doing="setting tags"):
        fitted = [RunTag(k, fitting(v, MAX_TAG_VAL_LENGTH)) for k, v in tags.items()]
        for batch in batches(fitted, MAX_PARAMS_TAGS_PER_BATCH):
            client.log_batch(run.run_id, tags=batch)


def log_dataset(
    tracking: Tracking, run: RunRef, *, name: str, folder: str, sha256: str, context: str
) -> None:
    """Log a data set by name, relative folder and digest, without copying images."""
    with warnings.catch_warnings():
        # A folder matches two of MLflow's source classes, which are the same.
        warnings.filterwarnings("ignore", message="The specified dataset source can be interp")
        source = resolve_dataset_source(folder)
    dataset = MetaDataset(source, name=name, digest=sha256[:DIGEST_LENGTH])
    tag = InputTag("mlflow.data.context", context)
    client = connect(tracking)
    with registry_errors(tracking, doing=f"recording the data set {name}"):
        client.log_inputs(run.run_id, [DatasetInput(dataset._to_mlflow_entity(), [tag])])


def log_metrics(tracking: Tracking, run: RunRef, metrics: Iterable[Metric]) -> None:
    """Log metrics, without those that exist with the same key, step and value."""
    client = connect(tracking)
    with registry_errors(tracking, doing="writing metrics"):
        there: dict[str, set[tuple[int, float]]] = {}
        new: list[Metric] = []
        for metric in metrics:
            if metric.key not in there:
                there[metric.key] = recorded(client, run.run_id, metric.key)
            if (metric.step, metric.value) not in there[metric.key]:
                new.append(metric)
        for batch in batches(new, MAX_METRICS_PER_BATCH):
            client.log_batch(run.run_id, metrics=batch)


def complete_curves(
    tracking: Tracking, run: RunRef, values: Mapping[int, Mapping[str, float]]
) -> None:
    """Log metrics by step for the steps that lack them."""
    client, now = connect(tracking), get_current_time_millis()
    with registry_errors(tracking, doing="reading the metrics of the training"):
        keys = {key for by_key in values.values() for key in by_key}
        there = {key: {step for step, _ in recorded(client, run.run_id, key)} for key in keys}
    log_metrics(
        tracking,
        run,
        [
            Metric(key, value, now, step)
            for step, by_key in values.items()
            for key, value in by_key.items()
            if step not in there[key]
        ],
    )


def recorded(client: MlflowClient, run_id: str, key: str) -> set[tuple[int, float]]:
    """The logged steps and values of a key."""
    return {(entry.step, entry.value) for entry in client.get_metric_history(run_id, key)}


def log_image(tracking: Tracking, run: RunRef, png: bytes, *, name: str, step: int) -> None:
    """Log an image for MLflow's image grid, once per step.

    A tag, set last, marks it as logged, so a kill in between costs at most a second copy.
    """
    client = connect(tracking)
    tag = f"dreambooth.image.{name}.{step}"
    digest = hashlib.sha256(png).hexdigest()[:16]
    with registry_errors(tracking, doing=f"writing the image {name}"):
        if client.get_run(run.run_id).data.tags.get(tag) == digest:
            return
        with Image.open(io.BytesIO(png)) as image:
            client.log_image(run.run_id, image, key=name, step=step, synchronous=True)
        client.set_tag(run.run_id, tag, digest)


def log_text(tracking: Tracking, run_id: str, text: str, file: str) -> None:
    """Write a text file among the run's artifacts; replaces an existing one."""
    with registry_errors(tracking, doing=f"writing {file}"):
        connect(tracking).log_text(run_id, text, file)


def set_status(tracking: Tracking, run: RunRef, status: str) -> None:
    """Set the status: `RUNNING`, then `FINISHED`, `FAILED` or `KILLED`."""
    client = connect(tracking)
    with registry_errors(tracking, doing=f"marking the run {status}"):
        if status == "RUNNING":
            client.update_run(run.run_id, status=status)
        else:
            client.set_terminated(run.run_id, status=status)


def finish(tracking: Tracking, run: RunRef) -> None:
    """Mark a run as finished, unless it is: a training that was stopped early left it `KILLED`."""
    with registry_errors(tracking, doing="reading the run's status"):
        status = connect(tracking).get_run(run.run_id).info.status
    if status != "FINISHED":
        set_status(tracking, run, "FINISHED")


def batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    """Consecutive parts of at most `size` items."""
    return (items[i : i + size] for i in range(0, len(items), size))
