"""The worker of the launch tests: the real one, on made-up rows. `tracking` says how to misbehave.

`slow_s`: sleep so long before each micro-step. `die_at`: kill the process that comes to the
micro-step of this number, counted over all processes. `nan_at`: its first row is not a number.
`die_in_save`: kill the process in the middle of writing the state of this step, an update later.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dreambooth_core import files
from dreambooth_core.models.denoiser import RowsAt, TrainBatch
from dreambooth_core.ports import MetricSink
from dreambooth_core.training import worker
from dreambooth_core.training.job import TrainJob
from tests.unit.training import tiny


def open_rows(job: TrainJob) -> RowsAt:
    plain = tiny.open_rows(job)
    slow_s = float(job.tracking.get("slow_s", "0"))
    nan_at = int(job.tracking.get("nan_at", "-1"))
    die_at = int(job.tracking.get("die_at", "-1"))

    def rows_at(positions: Sequence[int]) -> TrainBatch:
        time.sleep(slow_s)
        if die_at == positions[0] // job.train.train_batch_size:
            os.kill(os.getpid(), signal.SIGKILL)
        batch = plain(positions)
        if nan_at == positions[0] // job.train.train_batch_size:
            batch.latents_BCHW[0] = torch.nan
        return batch

    return rows_at


def open_sink(job: TrainJob) -> MetricSink:
    if "die_in_save" in job.tracking:
        _die_in_save(job, step=int(job.tracking["die_in_save"]))
    return tiny.ListSink()


def _die_in_save(job: TrainJob, *, step: int) -> None:
    """When the files of that state are written and not yet hashed."""
    hashes = files.tree_hashes

    def die_or_hash(root: Path) -> dict[str, str]:
        if root.name.startswith(f".aside-step-{step:08d}"):
            tiny.wait_for(lambda: len(tiny.updates(job)) > step)
            os.kill(os.getpid(), signal.SIGKILL)
        return hashes(root)

    files.tree_hashes = die_or_hash


if __name__ == "__main__":
    path = Path(sys.argv[1])
    worker.Trainer = tiny.logging_trainer(TrainJob.load(path))
    sys.exit(worker.main(path, open_rows=open_rows, open_sink=open_sink))
