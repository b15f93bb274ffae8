"""How a training is launched, as far as the memory of a device depends on it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreambooth_core import config
from dreambooth_core.config import Strategy, TrainSettings
from dreambooth_core.config.launching import offloads
from dreambooth_core.workspace import Workspace

LaunchKind = Literal["one process", "DDP", "DeepSpeed", "FSDP2"]


_NAMES: dict[Strategy, LaunchKind] = {
    "single": "one process",
    "ddp": "DDP",
    "deepspeed": "DeepSpeed",
    "fsdp": "FSDP2",
}


@dataclass(frozen=True)
class Launch:
    """What splits or copies weights, gradients and moments, and over how many processes."""

    kind: LaunchKind = "one process"
    num_processes: int = 1
    offloads: bool = False
    """Whether the optimizer's state is moved off the card."""


def launch_of(train: TrainSettings, root: Path) -> Launch:
    """The launch of the settings, by the content of the file that they name.

    Raises SettingsError where there is no such file, or it says something else than the settings.
    """
    file = config.read_launch_config(Workspace(root), train)
    strategy = config.strategy_of(train, file)
    is_offloaded = file is not None and offloads(file.deepspeed or {})
    return Launch(_NAMES[strategy], train.num_processes, is_offloaded)
