"""Runs of a few updates by either trainer on the tiny model.

`python -m tests.unit.jax.runs BASE_MODEL FOLDER '{"snr_gamma": 5.0}'` trains through JAX and prints
the number of devices and the losses, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.optim.ddp import DdpStrategy
from dreambooth_core.training.trainable import load_trainable_model
from dreambooth_core.training.trainer import StepTrainer, Trainer
from tests.unit.training import tiny

CPU = torch.device("cpu")
NUM_STEPS = 10


def torch_trainer(job: TrainJob, *, state: Path | None = None) -> Trainer:
    accelerator = Accelerator(cpu=True, mixed_precision=job.train.mixed_precision)
    model = load_trainable_model(job, device=CPU)
    updates = DdpStrategy(model, accelerator=accelerator, settings=job.train, state=state)
    return Trainer(updates, rows_at=tiny.open_rows(job))


def jax_trainer(job: TrainJob, *, state: Path | None = None):
    from dreambooth_core.jax.trainer import JaxTrainer

    model = load_trainable_model(job, device=CPU)
    return JaxTrainer(model, settings=job.train, rows_at=tiny.open_rows(job), state=state)


def losses(trainer: StepTrainer, steps: Sequence[int]) -> list[float]:
    """Make the updates after `steps` completed ones each; their losses."""
    found = []
    for step in steps:
        report = trainer.apply(trainer.accumulate(step, stop=False))
        trainer.clear_gradients()
        found.append(report.values.tolist()[0])
    return found


def main(base_model: str, folder: str, settings: str) -> None:
    job = tiny.make_job(Path(folder), Path(base_model), **json.loads(settings))
    found = losses(jax_trainer(job), range(NUM_STEPS))
    import jax

    sys.stdout.write(json.dumps({"devices": len(jax.devices()), "losses": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
