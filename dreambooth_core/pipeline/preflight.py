"""Settings that no stage ahead can work with, reported together before any work.

`input_checks` checks what the settings name. The checks here are those of this machine, made by the
code that needs the device or the package. Torch is imported only if the settings need something
that not every machine has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.config import ComputeSettings, SubjectView, read_launch_config
from dreambooth_core.errors import Problem, SettingsError
from dreambooth_core.pipeline import input_checks
from dreambooth_core.pipeline.input_checks import Check
from dreambooth_core.workspace import STAGES, Workspace

if TYPE_CHECKING:
    import torch

TRAINING_STAGES = ("class-images", "cache", "train")
"""The training and the stages that only a training needs. The data gate runs on any machine."""


@dataclass(frozen=True)
class Finding:
    """A mistake in the settings, and the stages that would fail."""

    problem: Problem
    stages: tuple[str, ...]


def findings(
    root: Path, view: SubjectView, env: Mapping[str, str], *, on_this_machine: bool = True
) -> list[Finding]:
    """Every mistake in the settings of any stage; what this machine lacks only if it is asked."""
    checks = [*input_checks.checks(root, view)]
    if on_this_machine:
        checks += _machine_checks(root, view, env)
    return _found(checks, view)


def refuse(found: Iterable[Finding], stages: Collection[str]) -> None:
    """Raise SettingsError with the findings that concern a stage of `stages`."""
    problems = [each.problem for each in found if not set(stages).isdisjoint(each.stages)]
    if problems:
        raise SettingsError.of(dict.fromkeys(problems))


def check_stage(root: Path, view: SubjectView, env: Mapping[str, str], stage: str) -> None:
    """Raise SettingsError for settings with which the stage, or one after it, would fail.

    A later stage's settings are checked as far as this needs neither its files nor its machine.
    """
    later = STAGES[STAGES.index(stage) :]
    checks = [
        check
        for check in (*input_checks.checks(root, view), *_machine_checks(root, view, env))
        if stage in check.stages or (check.is_early and not set(later).isdisjoint(check.stages))
    ]
    refuse(_found(checks, view), later)


def _found(checks: Iterable[Check], view: SubjectView) -> list[Finding]:
    return [
        Finding(problem, check.stages)
        for check in checks
        for problem in input_checks.problems_of(check, view)
    ]


def _machine_checks(root: Path, view: SubjectView, env: Mapping[str, str]) -> Iterator[Check]:
    """Yield the checks that the settings need."""
    train, compute = view.train, view.compute
    stages = TRAINING_STAGES
    if compute.device == "cuda":
        yield Check((*stages, "evaluate"), lambda: _pick_device(compute))
    if train.mixed_precision == "fp16":
        from dreambooth_core.training.precision import check_compute_type

        yield Check(stages, lambda: check_compute_type(train, compute, device=_device(compute)))
    if train.enable_xformers_memory_efficient_attention:
        from dreambooth_core.models.kernels import check_xformers

        yield Check(stages, lambda: check_xformers(_device(compute)))
    if train.compile_blocks:
        from dreambooth_core.models.kernels import check_compiler

        yield Check(stages, lambda: check_compiler(_device(compute)))
    if train.use_8bit_adam:
        from dreambooth_core.training.optim.adamw import check_adam_8bit

        yield Check(stages, check_adam_8bit)
    if train.strategy == "deepspeed":
        from dreambooth_core.training.optim.deepspeed import check_deepspeed

        yield Check(stages, check_deepspeed)
    if view.runtime.report_to:
        from dreambooth_core.training.trackers import check_trackers

        yield Check(("train",), lambda: check_trackers(view.runtime.report_to))
    if train.init_from is not None:
        from dreambooth_core.pipeline import init_from

        yield Check(("train",), lambda: init_from.check(root, view, env))
    if train.num_processes > 1 and compute.device != "cpu":
        yield Check(stages, lambda: _gpus(root, view))
    yield Check(stages, lambda: _node(root, view, env))


def _pick_device(compute: ComputeSettings) -> torch.device:
    from dreambooth_core.models.load import pick_device

    return pick_device(compute)


def _device(compute: ComputeSettings) -> torch.device:
    """The device to check: the CPU if the GPU is missing, which has its own error."""
    import torch

    try:
        return _pick_device(compute)
    except SettingsError:
        return torch.device("cpu")


def _gpus(root: Path, view: SubjectView) -> None:
    import torch

    launch = read_launch_config(Workspace(root), view.train)
    num_here = view.train.num_processes // (launch.num_machines if launch else 1)
    have = torch.cuda.device_count()
    if torch.cuda.is_available() and num_here > have:
        raise SettingsError(
            f"{num_here} processes on this machine, each of which needs a GPU",
            key="train.num_processes",
            got=f"{have} GPUs",
        )


def _node(root: Path, view: SubjectView, env: Mapping[str, str]) -> None:
    from dreambooth_core.training.launch.accelerate_config import check_node, node_of

    check_node(view.train, read_launch_config(Workspace(root), view.train), node_of(env))
