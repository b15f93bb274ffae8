"""The process that accelerate launches: the trainer with its data and its metric sink."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.data.batches import LatentDataset
from dreambooth_core.environment import tracking_uri
from dreambooth_core.models import load
from dreambooth_core.models.denoiser import RowsAt
from dreambooth_core.pipeline.common import run_name
from dreambooth_core.ports import MetricSink, NullSink
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
