"""Starts the processes of a run, checks them against the settings and builds their strategy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list

from dreambooth_core.config import TrainSettings
from dreambooth_core.config.compatibility import TRAIN_RULES, broken
from dreambooth_core.errors import DreamBoothError, Problem, SettingsError, StageError
from dreambooth_core.models.kernels import allow_tf32
from dreambooth_core.models.load import configure_torch, pick_device
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.optim.ddp import DdpStrategy
from dreambooth_core.training.optim.fused_backward import FusedBackwardStrategy
from dreambooth_core.training.precision import check_compute_type
from dreambooth_core.training.protocols import Strategy
from dreambooth_core.training.trainable import TrainableModel

T = TypeVar("T")


def start_accelerator(job: TrainJob) -> Accelerator:
    """Start the Accelerator with the device and the number of processes of the settings.

    Launchers silently fall back to one process, to several independent runs or to plain DDP, so
    this compares the result with the settings. Raises SettingsError if this machine cannot run
    the settings, and StageError if the launcher started something else.
    """
    configure_torch(job.compute)
    allow_tf32(allowed=job.train.allow_tf32)
    device = pick_device(job.compute)
    check_compute_type(job.train, job.compute, device=device)
    on_cpu = device.type == "cpu"
    # With cpu=True accelerate ignores DeepSpeed. Without it, accelerate sets no backend, and every
    # process would run as the only one.
    deepspeed = job.train.strategy == "deepspeed"
    accelerator = Accelerator(
        mixed_precision=job.train.mixed_precision,
        cpu=on_cpu and not deepspeed,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpu and deepspeed else [],
    )
    _check_processes(job, accelerator)
    return accelerator


def _check_processes(job: TrainJob, accelerator: Accelerator) -> None:
    if accelerator.num_processes != job.train.num_processes:
        raise StageError(
            "the launcher started the wrong number of processes",
            got=str(accelerator.num_processes),
            allowed=f"num_processes {job.train.num_processes}",
            hint="set num_processes to at most the number of GPUs",
        )
    by_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if job.train.strategy == "deepspeed" and not by_deepspeed:
        raise StageError(
            "the settings select DeepSpeed, but the launcher started without it",
            got=f"distributed type {accelerator.distributed_type.value}",
        )
    if by_deepspeed and job.train.strategy != "deepspeed":
        found = list(broken(TRAIN_RULES, {**dict(job.train), "strategy": "deepspeed"}))
        if found:
            raise SettingsError.of(Problem(text, f"train.{name}") for name, text in found)


def broadcast_from_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """Call `make` in the main process and return its value in all processes.

    A DreamBoothError of `make` is also raised in all processes, so that none waits for the others.
    """
    result: list[tuple[T | None, DreamBoothError | None]] = [(None, None)]
    if accelerator.is_main_process:
        try:
            result = [(make(), None)]
        except DreamBoothError as error:
            result = [(None, error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(result)
    value, error = result[0]
    if error is not None:
        raise error
    return value  # pyright: ignore[reportReturnType] - None only if `make` returns None


def make_strategy(
    model: TrainableModel, *, accelerator: Accelerator, settings: TrainSettings, state: Path | None
) -> Strategy:
    """Build the strategy that the processes were launched for.

    `state` is the verified folder to resume from; None starts a new training. Raises SettingsError
    if a library of the strategy is missing, and StageError if DeepSpeed changed the settings.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from dreambooth_core.training.optim.deepspeed import DeepSpeedStrategy

        return DeepSpeedStrategy(model, accelerator=accelerator, settings=settings, state=state)
    if accelerator.distributed_type == DistributedType.FSDP or settings.strategy == "fsdp":
        from dreambooth_core.training.optim.fsdp import FsdpStrategy

        return FsdpStrategy(model, accelerator=accelerator, settings=settings, state=state)
    if settings.fused_backward:
        return FusedBackwardStrategy(model, accelerator=accelerator, settings=settings, state=state)
    return DdpStrategy(model, accelerator=accelerator, settings=settings, state=state)
