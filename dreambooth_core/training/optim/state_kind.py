"""How the processes that made a state were launched, told by the state's own files.

So it is known of every state, of whatever age. A state is read as it was written: whole, split
by FSDP2 (by any number of processes), or split by DeepSpeed (by as many as made it).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.config import Strategy

DEEPSPEED_TAG = "deepspeed"
"""The folder that DeepSpeed writes into."""
DEEPSPEED_PARTS = "*_optim_states.pt"
"""The files in it with each process's moments."""
FSDP_METADATA = ".metadata"
"""The file of torch's distributed checkpoints that says which process has written what."""
_NAMES = {None: "whole weights", "deepspeed": "DeepSpeed", "fsdp": "FSDP2"}


@dataclass(frozen=True)
class StateKind:
    """What splits a state; `num_processes` where another number of them could not read it."""

    strategy: str | None
    num_processes: int | None = None

    @property
    def is_split(self) -> bool:
        """Whether the weights are not to be had without the processes that split them."""
        return self.strategy is not None

    def __str__(self) -> str:
        number = f" of num_processes {self.num_processes}" if self.num_processes else ""
        return f"{_NAMES[self.strategy]}{number}"


def of_launch(strategy: Strategy, *, num_processes: int) -> StateKind:
    """The kind of state that a run with this strategy writes and reads."""
    if strategy == "deepspeed":
        return StateKind("deepspeed", num_processes)
    return StateKind("fsdp" if strategy == "fsdp" else None)


def of_state(state: Path) -> StateKind:
    """What the state in a folder is."""
    engine = state / DEEPSPEED_TAG
    if engine.is_dir():
        return StateKind("deepspeed", len(list(engine.glob(DEEPSPEED_PARTS))))
    return StateKind("fsdp" if (state / FSDP_METADATA).is_file() else None)
