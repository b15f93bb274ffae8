"""Checkpoints as MLflow LoggedModels: scores for each, files for the best only.

A logged model starts as an external model, with name, tags and scores. The upload adds files to the
same model and keeps its id and scores. A rerun after a kill may repeat every step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models.utils import get_external_mlflow_model_spec
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL
from mlflow.utils.time import get_current_time_millis

from dreambooth_core import files
from dreambooth_core.records import REAL, Checkpoint, Harness, ScoreRow, Scores, Selection
from dreambooth_core.registry import package, runs
from dreambooth_core.registry.runs import RunRef
from dreambooth_core.registry.tracking import Tracking, connect, mlflow_lock, registry_errors

CHECKPOINT_SHA256 = "dreambooth.checkpoint_sha256"
UPLOADED = "dreambooth.uploaded"
"""Tag of a logged model, set last: the digest of its upload, which is incomplete without it."""

_MODEL_TYPE = "dreambooth-checkpoint"
_MLMODEL = "MLmodel"
_SCORE = "score"


def record_scores(
    tracking: Tracking,
    run: RunRef,
    *,
    checkpoints: Sequence[Checkpoint],
    scores: Scores,
    grid: Path | None = None,
) -> dict[str, str]:
    """Log the score table: a LoggedModel per checkpoint, curves over steps, the grid.

    Metrics have one scheme, group/name: `score/dino` over steps (with `score/dino_low` and
    `score/dino_high`), `real/dino` of the photos, `best/dino` of the chosen checkpoint.

    Returns the model id of each checkpoint by name. Raises RegistryError.
    """
    rows = {row.name: row for row in scores.rows}
    models: dict[str, str] = {}
    runs.log_metrics(tracking, run, _references(scores))
    for checkpoint in checkpoints:
        model = find_or_create_model(tracking, run, checkpoint)
        models[checkpoint.name] = model.model_id
        if checkpoint.name in rows:
            log_model_scores(
                tracking, run.run_id, model.model_id, rows[checkpoint.name], scores.harness
            )
    if grid is not None:
        last = max((checkpoint.step for checkpoint in checkpoints), default=0)
        runs.log_image(tracking, run, grid.read_bytes(), name="grid", step=last)
    return models


def record_selection(
    tracking: Tracking, run: RunRef, *, selection: Selection, scores: Scores
) -> None:
    """Log the best checkpoint, its scores as `best/...`, and the rule as a tag."""
    runs.log_tags(
        tracking,
        run,
        {
            "dreambooth.best": selection.best or "none",
            "dreambooth.qualified": str(selection.qualified).lower(),
            "dreambooth.rule": selection.rule,
        },
    )
    best = next((row for row in scores.rows if row.name == selection.best), None)
    if best is None or best.step is None:
        return
    now = get_current_time_millis()
    values = {**best.means(), "step": float(best.step)}
    runs.log_metrics(
        tracking, run, [Metric(f"best/{key}", value, now, 0) for key, value in values.items()]
    )


def find_model(
    tracking: Tracking, run: RunRef, sha256: str, *, upload: str | None = None
) -> LoggedModel | None:
    """The oldest LoggedModel of a checkpoint in its training's run, or None.

    With `upload`, the digest of an upload, only a model that has exactly these files counts.
    """
    wanted = f"tags.`{CHECKPOINT_SHA256}` = '{sha256}' AND source_run_id = '{run.run_id}'"
    if upload is not None:
        wanted += f" AND tags.`{UPLOADED}` = '{upload}'"
    with registry_errors(tracking, doing="looking for a checkpoint"):
        found = connect(tracking).search_logged_models(
            [run.experiment_id],
            filter_string=wanted,
            order_by=[{"field_name": "creation_timestamp", "ascending": True}],
            max_results=1,
        )
    return found[0] if found else None


def find_or_create_model(tracking: Tracking, run: RunRef, checkpoint: Checkpoint) -> LoggedModel:
    """Find or create the LoggedModel of a checkpoint; completes one after a kill."""
    client = connect(tracking)
    with mlflow_lock(tracking):
        model = find_model(tracking, run, checkpoint.sha256)
        with registry_errors(tracking, doing=f"recording {checkpoint.name}"):
            if model is None:
                model = _create(client, run, checkpoint)
            if model.status != LoggedModelStatus.READY:
                model = _complete(client, model)
    return model


def _create(client: MlflowClient, run: RunRef, checkpoint: Checkpoint) -> LoggedModel:
    return client.create_logged_model(
        run.experiment_id,
        name=checkpoint.name,
        source_run_id=run.run_id,
        model_type=_MODEL_TYPE,
        params={"step": str(checkpoint.step), "method": checkpoint.method},
        tags={CHECKPOINT_SHA256: checkpoint.sha256, MLFLOW_MODEL_IS_EXTERNAL: "true"},
    )


def _complete(client: MlflowClient, model: LoggedModel) -> LoggedModel:
    """Add the stub that MLflow expects of an external model, and mark the model ready."""
    with tempfile.TemporaryDirectory() as folder:
        get_external_mlflow_model_spec(model).save(str(Path(folder) / _MLMODEL))
        client.log_model_artifacts(model.model_id, folder)
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def upload(
    tracking: Tracking, run: RunRef, *, checkpoint: Checkpoint, saved_model: Path, digest: str
) -> str:
    """Upload a saved MLflow model into a checkpoint's LoggedModel; returns the model id.

    Does nothing if an upload with this `digest` exists. A LoggedModel with another digest may
    belong to a registered version, so it stays, and the upload gets a new one.
    """
    client = connect(tracking)
    model = find_or_create_model(tracking, run, checkpoint)
    with mlflow_lock(tracking), registry_errors(tracking, doing=f"uploading {checkpoint.name}"):
        there = find_model(tracking, run, checkpoint.sha256, upload=digest)
        if there is not None:
            return there.model_id
        if UPLOADED in client.get_logged_model(model.model_id).tags:
            model = _create(client, run, checkpoint)
        _write_identity(saved_model, model, run)
        client.log_model_artifacts(model.model_id, str(saved_model))
        _finish_upload(client, run, model, checkpoint, digest)
    return model.model_id


def _write_identity(saved_model: Path, model: LoggedModel, run: RunRef) -> None:
    """Write id and run of the LoggedModel into the saved model's MLmodel file."""
    path = saved_model / _MLMODEL
    spec = package.load_spec(saved_model)
    spec.model_uuid = spec.model_id = model.model_id
    spec.run_id, spec.artifact_path = run.run_id, model.artifact_location
    spec.save(str(path))


def _finish_upload(
    client: MlflowClient, run: RunRef, model: LoggedModel, checkpoint: Checkpoint, digest: str
) -> None:
    """Mark the model as not external, link it to the run, and set the tag of a complete upload."""
    if model.status != LoggedModelStatus.READY:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if MLFLOW_MODEL_IS_EXTERNAL in client.get_logged_model(model.model_id).tags:
        client.delete_logged_model_tag(model.model_id, MLFLOW_MODEL_IS_EXTERNAL)
    outputs = client.get_run(run.run_id).outputs
    linked = {output.model_id for output in outputs.model_outputs} if outputs else set()
    if model.model_id not in linked:  # MLflow refuses a second link with a raw SQL error
        output = LoggedModelOutput(model.model_id, step=checkpoint.step)
        client.log_outputs(run.run_id, [output])
    client.set_logged_model_tags(model.model_id, {UPLOADED: digest})


# ---- scores -------------------------------------------------------------------------------------


def harness_digest(harness: Harness) -> str:
    """Hash the harness, which keeps rows of two harnesses apart."""
    return files.digest_of(harness.to_json())[: runs.DIGEST_LENGTH]


def log_model_scores(
    tracking: Tracking, run_id: str, model_id: str, row: ScoreRow, harness: Harness
) -> None:
    """Log a row's scores into its model, linked to the harness, unless they exist."""
    client, digest = connect(tracking), harness_digest(harness)
    with registry_errors(tracking, doing=f"writing the scores of {row.name}"):
        there = {
            (metric.key, metric.value)
            for metric in client.get_logged_model(model_id).metrics or ()
            if metric.dataset_digest == digest
        }
        values = {f"{_SCORE}/{name}": value for name, value in _with_bounds(row).items()}
        new = {k: v for k, v in values.items() if (k, v) not in there}
        now = get_current_time_millis()
        client.log_batch(
            run_id,
            metrics=[
                Metric(
                    key,
                    value,
                    now,
                    row.step or 0,
                    model_id=model_id,
                    dataset_name=harness.suite,
                    dataset_digest=digest,
                )
                for key, value in new.items()
            ],
        )


def _references(scores: Scores) -> list[Metric]:
    """The run's own metrics: `score/<name>` at step 0, `real/<name>` for the photos.

    The checkpoints' scores continue the curve `score/<name>`: their models have the same keys.
    """
    now = get_current_time_millis()
    return [
        Metric(f"{REAL if row.step is None else _SCORE}/{name}", value, now, 0)
        for row in scores.rows
        if not row.step
        for name, value in row.means().items()
    ]


def _with_bounds(row: ScoreRow) -> dict[str, float]:
    """Means with the bounds of their 95 % intervals."""
    values = row.means()
    for name, interval in row.intervals().items():
        values |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return values


def score_tags(row: ScoreRow) -> Mapping[str, str]:
    """A row's scores as text tags of a version, such as `score.dino`."""
    return {f"score.{name}": f"{value:.6g}" for name, value in row.means().items()}
