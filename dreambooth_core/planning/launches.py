"""How a training is launched, as far as the memory of a device depends on it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreambooth_core import config
from dreambooth_core.config import TrainSettings
from dreambooth_core.config.launching import offloads
from dreambooth_core.config.pairs import uses_deepspeed, uses_fsdp
from dreambooth_core.workspace import Workspace


@dataclass(frozen=True)
class Launch:
    """What splits or copies weights, gradients and moments, and over how many processes."""

    kind: Literal["one process", "DDP", "DeepSpeed", "FSDP2"] = "one process"
    num_processes: int = 1
    offloads: bool = False
    """Whether the optimizer's state is moved off the card."""


def launch_of(train: TrainSettings, root: Path) -> Launch:
    """The launch of the settings, by the content of the file that they name.

    Raises SettingsError where there is no such file, or it says something else than the settings.
    """
    file = config.read_launch_config(Workspace(root), train)
    if file is not None and uses_deepspeed(train):
        return Launch("DeepSpeed", train.num_processes, offloads(file.deepspeed or {}))
    if uses_fsdp(train):
        return Launch("FSDP2", train.num_processes)
    return Launch("DDP", train.num_processes) if train.num_processes > 1 else Launch()
