"""The launch of a training, as far as it affects the memory of each device. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth_core import config
from dreambooth_core.config import Strategy, TrainSettings
from dreambooth_core.config.launching import offloads
from dreambooth_core.workspace import Workspace


@dataclass(frozen=True)
class Launch:
    """The strategy that shards or copies the training state, and its number of processes."""

    strategy: Strategy = "single"
    num_processes: int = 1
    offloads: bool = False
    """Whether the optimizer's state is on the CPU."""


def launch_of(train: TrainSettings, root: Path) -> Launch:
    """The launch that the settings and their launch file describe.

    Raises SettingsError if the file is missing or contradicts the settings.
    """
    file = config.read_launch_config(Workspace(root), train)
    strategy = config.strategy_of(train, file)
    is_offloaded = file is not None and offloads(file.deepspeed or {})
    return Launch(strategy, train.num_processes, is_offloaded)
