"""Settings that this machine cannot train, reported together before any work.

The checks are those of the code that needs the device or the package. Torch is imported only if
the settings need something that not every machine has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.config import ComputeSettings, SubjectView, read_launch_config
from dreambooth_core.errors import Problem, SettingsError
from dreambooth_core.workspace import Workspace

if TYPE_CHECKING:
    import torch

TRAINING_STAGES = ("class-images", "cache", "train")
"""The training and the stages that only a training needs. The data gate runs on any machine."""

_Check = Callable[[], object]


def problem(root: Path, view: SubjectView, env: Mapping[str, str]) -> SettingsError | None:
    """One error with all settings that this machine does not support; None if there are none.

    Raises SettingsError for a launch configuration that the settings do not fit.
    """
    found: list[Problem] = []
    for check in _checks(root, view, env):
        try:
            check()
        except SettingsError as error:
            found += error.problems
    return SettingsError.of(found) if found else None


def _checks(root: Path, view: SubjectView, env: Mapping[str, str]) -> Iterator[_Check]:
    train = view.train
    if view.compute.device == "cuda":
        yield lambda: _pick_device(view.compute)
    if train.mixed_precision == "fp16":
        yield lambda: _compute_type(view)
    if train.enable_xformers_memory_efficient_attention:
        yield lambda: _xformers(view.compute)
    if train.compile_blocks:
        yield lambda: _compiler(view.compute)
    if train.use_8bit_adam:
        yield _adam_8bit
    if train.strategy == "deepspeed":
        yield _deepspeed
    yield lambda: _node(root, view, env)


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


def _compute_type(view: SubjectView) -> None:
    from dreambooth_core.training.precision import check_compute_type

    check_compute_type(view.train, view.compute, device=_device(view.compute))


def _xformers(compute: ComputeSettings) -> None:
    from dreambooth_core.models.kernels import check_xformers

    check_xformers(_device(compute))


def _compiler(compute: ComputeSettings) -> None:
    from dreambooth_core.models.kernels import check_compiler

    check_compiler(_device(compute))


def _adam_8bit() -> None:
    from dreambooth_core.training.optim.adamw import check_adam_8bit

    check_adam_8bit()


def _deepspeed() -> None:
    from dreambooth_core.training.optim.deepspeed import check_deepspeed

    check_deepspeed()


def _node(root: Path, view: SubjectView, env: Mapping[str, str]) -> None:
    from dreambooth_core.training.launch.accelerate_config import check_node, node_of

    check_node(view.train, read_launch_config(Workspace(root), view.train), node_of(env))
