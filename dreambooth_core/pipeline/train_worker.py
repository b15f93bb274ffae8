"""The process that accelerate launches: the trainer with its data and its metric sink."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreambooth_core.data.batches import LatentDataset
from dreambooth_core.environment import tracking_uri
from dreambooth_core.models import load
from dreambooth_core.models.denoiser import RowsAt
from dreambooth_core.pipeline.common import run_name
from dreambooth_core.ports import MetricSink, NullSink, SeveralSinks
from dreambooth_core.training import worker
from dreambooth_core.training.job import TrainJob
from dreambooth_core.workspace import Workspace

_SYSTEM_METRICS_EVERY_S = 10


def run_worker(job: Path) -> int:
    """Do the job written at `job`; the exit code is that of the command line."""
    return worker.main(job, open_rows=_open_rows, open_sink=_open_sink)


def _open_rows(job: TrainJob) -> RowsAt:
    data = LatentDataset(
        job.cache_dir, seed=job.train.seed, with_class_rows=job.prior_loss_weight is not None
    )
    return data.rows_at


def _open_sink(job: TrainJob) -> MetricSink:
    return SeveralSinks(_open_mlflow(job), *_open_trackers(job))


def _open_trackers(job: TrainJob) -> Iterator[MetricSink]:
    """The trackers of `runtime.report_to`; a resumed training continues its run in each."""
    if not job.report_to:
        return
    from dreambooth_core.training.trackers import TrackerSink

    name, folder = run_name(job.train.method, job.fingerprint), job.trackers_dir
    folder.mkdir(parents=True, exist_ok=True)
    wandb = {
        "id": f"{job.subject}-{name}",
        "name": name,
        "resume": "allow",
        "dir": str(folder),
        "config": job.train.model_dump(mode="json"),
    }
    for tracker in job.report_to:
        is_wandb = tracker == "wandb"
        yield TrackerSink(
            tracker,
            project=f"dreambooth-{job.subject}" if is_wandb else name,
            logging_dir=folder,
            options=wandb if is_wandb else None,
        )


def _open_mlflow(job: TrainJob) -> MetricSink:
    if not job.tracking:
        return NullSink()
    # MLflow takes seconds to import: only the process that writes to it does so.
    from dreambooth_core.registry.sink import MlflowSink, RunSpec
    from dreambooth_core.registry.tracking import resolve_tracking

    return MlflowSink(
        resolve_tracking(Workspace(job.workspace_root), uri=tracking_uri()),
        RunSpec(
            experiment=job.tracking["name"],
            fingerprint=job.fingerprint,
            name=run_name(job.train.method, job.fingerprint),
            system_metrics_every_s=_SYSTEM_METRICS_EVERY_S,
            device=load.device_name(load.pick_device(job.compute)),
        ),
    )
