"""Jobs on the tiny base model, with made-up rows: pure functions of (seed, position)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dreambooth_core.config import (
    BaseModelSettings,
    ComputeSettings,
    TrainSettings,
    read_launch_config,
    strategy_of,
)
from dreambooth_core.models.denoiser import RowsAt, TrainBatch
from dreambooth_core.numerics.seeding import generator_for
from dreambooth_core.ports import MetricSink, StopSignal, never_stop
from dreambooth_core.records import BaseModelIdentity
from dreambooth_core.training import worker
from dreambooth_core.training.job import TrainerExit, TrainJob
from dreambooth_core.training.trainer import Trainer, UpdateReport
from dreambooth_core.workspace import Workspace
from tests import tiny_models

REPOSITORY = Path(__file__).parents[3]
NUM_INSTANCE, NUM_CLASS = 4, 6
LORA = {"rank": 4, "lora_alpha": 8.0, "lora_dropout": 0.0, "lora_layers": ("to_q", "to_v")}
BEGIN = len(tiny_models.tiny_tokenizer()) - 2
"""The token that begins every prompt; the next one ends it."""
BF16 = {"weight_dtype": "bf16", "mixed_precision": "bf16"}
FUSED = {"fused_backward": True, "max_grad_norm": None}
FULL: dict[str, Any] = {
    "method": "full",
    "learning_rate": 1e-3,
    "max_train_steps": 6,
    "checkpointing_steps": 3,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 0.01,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "seed": 42,
    "num_processes": 1,
    "checkpoints_total_limit": 2,
}


class ListSink:
    """A metric sink that keeps everything in a list."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, dict[str, float]]] = []
        self.status: str | None = None

    def metrics(self, values, *, step: int) -> None:
        self.kept.append((step, dict(values)))

    def close(self, *, status: str) -> None:
        self.status = status


def make_job(
    tmp_path: Path,
    base_model: Path,
    *,
    prior: float | None = 1.0,
    name: str = "run",
    tracking: dict[str, str] | None = None,
    dry_run: bool = False,
    async_checkpointing: bool = False,
    **train: Any,
) -> TrainJob:
    """A job below `tmp_path/name` with the settings FULL, changed by `train`."""
    folder = tmp_path / name
    folder.mkdir(parents=True, exist_ok=True)
    settings = TrainSettings(**{**FULL, **train})
    launch = read_launch_config(Workspace(REPOSITORY), settings)
    settings = settings.model_copy(update={"strategy": strategy_of(settings, launch)})
    return TrainJob(
        subject="mug",
        fingerprint="f" * 64,
        base_model=BaseModelSettings(pretrained_model_name_or_path=str(base_model)),
        base_identity=BaseModelIdentity(name="tiny-sd", revision=None, sha256="0" * 64),
        compute=ComputeSettings(device="cpu", num_threads=1, deterministic=True),
        train=settings,
        prior_loss_weight=prior,
        log_every_steps=2,
        async_checkpointing=async_checkpointing,
        workspace_root=tmp_path,
        cache_dir=folder / "cache",
        state_dir=folder / "state",
        out_dir=folder / "out",
        log_file=folder / "train.log",
        launch=launch,
        tracking=tracking or {},
        dry_run=dry_run,
        entry=("tests.unit.training.tiny_worker",),
    )


def poisoned_at(first: int) -> RowsAt:
    """Rows as ever, but the second of the micro-step that begins at that position is NaN."""

    def poisoned(positions: Sequence[int]) -> TrainBatch:
        batch = rows_at(positions)
        if positions[0] == first:
            batch.latents_BCHW[1] = torch.nan
        return batch

    return poisoned


def rows_at(positions: Sequence[int], *, with_class: bool = True, seed: int = 42) -> TrainBatch:
    """Instance rows, then class rows, each of its own generator; for any tiny family."""
    rows = [(p, False) for p in positions] + [(p, True) for p in positions if with_class]
    side, channels = tiny_models.LATENT_SIDE, tiny_models.LATENT_CHANNELS
    latents, texts, pooled, ids, names = [], [], [], [], []
    for position, is_class in rows:
        index = position % (NUM_CLASS if is_class else NUM_INSTANCE)
        generator = generator_for(seed, f"test-image-{is_class}", index)
        latents.append(torch.randn(channels, side, side, generator=generator))
        text = generator_for(seed, f"test-text-{is_class}")
        texts.append(torch.randn(5, tiny_models.TEXT_WIDTH, generator=text))
        pooled.append(torch.randn(tiny_models.TEXT_WIDTH // 2, generator=text))
        ids.append(torch.tensor([BEGIN, *torch.randint(256, (3,), generator=text), BEGIN + 1]))
        names.append(f"{'class' if is_class else 'instance'}/{index}.png")
    return TrainBatch(
        latents_BCHW=torch.stack(latents),
        text_BLD=torch.stack(texts),
        is_class_B=tuple(is_class for _, is_class in rows),
        position_B=tuple(position for position, _ in rows),
        image_B=tuple(names),
        pooled_BP=torch.stack(pooled),
        ids_EBL=torch.stack([torch.stack(ids)] * 2),
        time_ids_B6=torch.tensor([[96.0, 96, 0, 0, 64, 64]]).repeat(len(rows), 1),
    )


def open_rows(job: TrainJob) -> RowsAt:
    """The rows of a job, with class rows where it has a prior."""
    return lambda positions: rows_at(positions, with_class=job.prior_loss_weight is not None)


def stop_after(calls: int) -> StopSignal:
    """Asks for a stop from its `calls`-th question on, which comes before update `calls`."""
    asked = iter(range(1, 1_000_000))
    return lambda: next(asked) >= calls


def train(
    job: TrainJob,
    *,
    should_stop: StopSignal = never_stop,
    rows: RowsAt | None = None,
    sink: MetricSink | None = None,
) -> TrainerExit:
    """Run the worker's work in this process."""
    job.state_dir.mkdir(parents=True, exist_ok=True)
    with mock.patch.object(worker, "Trainer", logging_trainer(job)):
        return worker.work(
            job,
            open_rows=open_rows if rows is None else lambda _: rows,
            open_sink=lambda _: sink or ListSink(),
            should_stop=should_stop,
        )


def logging_trainer(job: TrainJob) -> type[Trainer]:
    """The trainer, with one line per update in a log that all attempts share."""

    class LoggingTrainer(Trainer):
        def apply(self, report: UpdateReport) -> UpdateReport:
            applied = super().apply(report)
            if self._accelerator.is_main_process:
                with _update_log(job).open("a") as log:
                    log.write(f"{report.step}\n")
            return applied

    return LoggingTrainer


def updates(job: TrainJob) -> list[int]:
    """The steps of all updates over all attempts, repeated ones included."""
    log = _update_log(job)
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def _update_log(job: TrainJob) -> Path:
    return job.state_dir / "updates.log"


def wait_for(condition: Callable[[], bool], *, within_s: float = 60) -> None:
    """Until it holds; never longer than that, so that a test fails instead of hanging."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.005)
