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
    """Yield the checks that the settings need. Each one raises SettingsError."""
    train, compute = view.train, view.compute
    if compute.device == "cuda":
        yield lambda: _pick_device(compute)
    if train.mixed_precision == "fp16":
        from dreambooth_core.training.precision import check_compute_type

        yield lambda: check_compute_type(train, compute, device=_device(compute))
    if train.enable_xformers_memory_efficient_attention:
        from dreambooth_core.models.kernels import check_xformers

        yield lambda: check_xformers(_device(compute))
    if train.compile_blocks:
        from dreambooth_core.models.kernels import check_compiler

        yield lambda: check_compiler(_device(compute))
    if train.use_8bit_adam:
        from dreambooth_core.training.optim.adamw import check_adam_8bit

        yield check_adam_8bit
    if train.strategy == "deepspeed":
        from dreambooth_core.training.optim.deepspeed import check_deepspeed

        yield check_deepspeed
    from dreambooth_core.training.launch.accelerate_config import check_node, node_of

    yield lambda: check_node(train, read_launch_config(Workspace(root), train), node_of(env))


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
