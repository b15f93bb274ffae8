"""The MLflow run of a training: found or created by fingerprint, without duplicate entries.

All processes of a training (trainer, evaluation, registration, a rerun after a kill) write into the
same run, and writing something again adds no second entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import queue
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, Experiment, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
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
from dreambooth_core.errors import DreamBoothError, SettingsError
from dreambooth_core.masking import scrubbed
from dreambooth_core.registry.location import refuse_outside
from dreambooth_core.registry.store_uri import sqlite_file
from dreambooth_core.registry.tracking import (
    Tracking,
    connect,
    fitting,
    mlflow_lock,
    registry_errors,
)

FLUSH_EVERY_S = 2.0
CLOSE_TIMEOUT_S = 15.0

_MAX_BATCH = 500
_SOURCE = "dreambooth"
_KIND, _TRAINING = "mlflow.experimentKind", "custom_model_development"
"""MLflow's pages open an experiment of this kind in the view of training runs, others in that of
agents."""
_RUN_ADDRESS_LIMIT = 200
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSpec:
    """The run that a sink finds or creates."""

    experiment: str
    fingerprint: str
    name: str
    system_metrics_every_s: int | None = None


class MlflowSink:
    """Writes numbers into the run of `spec` in batches; a failure never stops the training.

    The first number starts a daemon thread, which makes every call to MLflow. On the first failure
    the thread logs one warning and ends: the stage's own files hold all numbers. It skips a number
    that the run already has at that step, because an exact resume repeats some steps.
    """

    def __init__(self, tracking: Tracking, spec: RunSpec) -> None:
        self._tracking, self._spec = tracking, spec
        self._queue: queue.SimpleQueue[Metric | None] = queue.SimpleQueue()
        self._known: dict[str, set[tuple[int, float]]] = {}
        self._status = "FINISHED"
        self._thread: threading.Thread | None = None

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record numbers at a step."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="mlflow-sink", daemon=True)
            self._thread.start()
        now = get_current_time_millis()
        for key, value in values.items():
            self._queue.put(Metric(key, float(value), now, step))

    def close(self, *, status: str) -> None:
        """Write the rest, for at most CLOSE_TIMEOUT_S, and end the run with `status`."""
        if self._thread is None:
            return
        self._status = status
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            _LOG.warning("MLflow is slow: the last metrics may be missing there")
        self._thread = None

    # ---- in the thread --------------------------------------------------------------------------

    def _write_all(self) -> None:
        try:
            run = self._open_run()
            with self._system_metrics(run):
                is_open = True
                while is_open:
                    batch, is_open = self._next_batch()
                    new = [metric for metric in batch if self._is_new(run, metric)]
                    if new:
                        connect(self._tracking).log_batch(run.run_id, metrics=new)
            set_status(self._tracking, run, self._status)
        except DreamBoothError as error:
            _LOG.warning("MLflow records nothing more of this run: %s", error)
        except Exception as error:
            # MLflow raises many types, and none of them may stop the training.
            text = scrubbed(f"{type(error).__name__}: {error}", self._tracking.uri)
            _LOG.warning("MLflow records nothing more of this run: %s", text)

    def _open_run(self) -> RunRef:
        spec = self._spec
        run = find_or_create_run(
            self._tracking, experiment=spec.experiment, fingerprint=spec.fingerprint, name=spec.name
        )
        if not run.created:
            set_status(self._tracking, run, "RUNNING")
        return run

    @contextlib.contextmanager
    def _system_metrics(self, run: RunRef) -> Iterator[None]:
        """Record processor, memory, disk, network and GPU while the block runs."""
        every = self._spec.system_metrics_every_s
        if every is None:
            yield
            return
        monitor = SystemMetricsMonitor(
            run.run_id,
            sampling_interval=every,
            resume_logging=not run.created,
            tracking_uri=self._tracking.uri,
        )
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def _next_batch(self) -> tuple[list[Metric], bool]:
        """Wait for a number and collect more for FLUSH_EVERY_S; False after `close`."""
        batch: list[Metric] = []
        deadline: float | None = None
        while len(batch) < _MAX_BATCH:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                metric = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if metric is None:
                return batch, False
            batch.append(metric)
            deadline = deadline or time.monotonic() + FLUSH_EVERY_S
        return batch, True

    def _is_new(self, run: RunRef, metric: Metric) -> bool:
        """Whether the run lacks this number; from now on it has it."""
        if metric.key not in self._known:
            client = connect(self._tracking)
            history = set() if run.created else recorded(client, run.run_id, metric.key)
            self._known[metric.key] = history
        entry = (metric.step, metric.value)
        is_new = entry not in self._known[metric.key]
        self._known[metric.key].add(entry)
        return is_new


GIT_COMMIT = MLFLOW_GIT_COMMIT
"""Tag of a run: the commit of the workspace."""

FINGERPRINT = "dreambooth.fingerprint"
"""Tag of a run, a logged model and a model version: the fingerprint of its work."""

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
            tags = resolve_tags({MLFLOW_SOURCE_NAME: _SOURCE, FINGERPRINT: fingerprint})
            run = connect(tracking).create_run(home, run_name=name, tags=tags)
    return RunRef(run.info.run_id, home, created=True)


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
        for batch in _batches(new, MAX_PARAMS_TAGS_PER_BATCH):
            client.log_batch(run.run_id, params=batch)


def log_tags(tracking: Tracking, run: RunRef, tags: Mapping[str, str]) -> None:
    """Set tags of a run; replaces existing ones."""
    client = connect(tracking)
    with registry_errors(tracking, doing="setting tags"):
        fitted = [RunTag(k, fitting(v, MAX_TAG_VAL_LENGTH)) for k, v in tags.items()]
        for batch in _batches(fitted, MAX_PARAMS_TAGS_PER_BATCH):
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
        new = [
            metric
            for metric in metrics
            if (metric.step, metric.value) not in recorded(client, run.run_id, metric.key)
        ]
        for batch in _batches(new, MAX_METRICS_PER_BATCH):
            client.log_batch(run.run_id, metrics=batch)


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


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))
