"""The processes of a run: opened, checked against the settings, and given their kind of updates."""

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
    """The processes of this run, as many as were asked for, on the device that was asked for.

    Launchers fall back to one process, to several runs of one, or to plain DDP without a word, so
    all of it is compared with the settings. Raises SettingsError and StageError.
    """
    configure_torch(job.compute)
    allow_tf32(allowed=job.train.allow_tf32)
    device = pick_device(job.compute)
    check_compute_type(job.train, job.compute, device=device)
    on_cpu = device.type == "cpu"
    # With `cpu` accelerate passes over DeepSpeed; without, it names its processes no backend, and
    # each believes to be alone.
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
            "the trainer was started with the wrong number of processes",
            got=str(accelerator.num_processes),
            allowed=f"num_processes {job.train.num_processes}",
            hint="on a GPU machine num_processes can be at most the number of GPUs",
        )
    by_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if job.train.strategy == "deepspeed" and not by_deepspeed:
        raise StageError(
            "the settings ask for DeepSpeed, but the trainer was started without it",
            got=f"distributed type {accelerator.distributed_type.value}",
        )
    if by_deepspeed and job.train.strategy != "deepspeed":
        found = list(broken(TRAIN_RULES, {**dict(job.train), "strategy": "deepspeed"}))
        if found:
            raise SettingsError.of(Problem(text, f"train.{name}") for name, text in found)


def broadcast_from_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """Call `make` in the main process and return its value in all of them.

    A DreamBoothError is raised in all of them as well, so that no process waits for the others.
    """
    answer: list[tuple[T | None, DreamBoothError | None]] = [(None, None)]
    if accelerator.is_main_process:
        try:
            answer = [(make(), None)]
        except DreamBoothError as error:
            answer = [(None, error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    value, error = answer[0]
    if error is not None:
        raise error
    return value  # pyright: ignore[reportReturnType] - None only if `make` returns None


def make_strategy(
    model: TrainableModel, *, accelerator: Accelerator, settings: TrainSettings, state: Path | None
) -> Strategy:
    """The kind of updates that the processes were launched for, from a verified state or new."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from dreambooth_core.training.optim.deepspeed import DeepSpeedStrategy

        return DeepSpeedStrategy(model, accelerator=accelerator, settings=settings, state=state)
    if accelerator.distributed_type == DistributedType.FSDP or settings.strategy == "fsdp":
        from dreambooth_core.training.optim.fsdp import FsdpStrategy

        return FsdpStrategy(model, accelerator=accelerator, settings=settings, state=state)
    if settings.fused_backward:
        return FusedBackwardStrategy(model, accelerator=accelerator, settings=settings, state=state)
    return DdpStrategy(model, accelerator=accelerator, settings=settings, state=state)
