"""Copies of weights and state in host memory, for another thread to write.

A snapshot has the tensors of a resume state. The networks to publish share the same copies, so
they need no extra memory.
"""

from __future__ import annotations

import contextlib
import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dreambooth_core import files
from dreambooth_core.environment import available_bytes
from dreambooth_core.models.denoiser import Denoiser
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.trainable import TrainableModel

_ROOM = 1.5
"""Factor by which the free memory must exceed a snapshot, to leave some for the rest."""
_GIB = 2**30


@dataclass(frozen=True)
class StateFiles:
    """The tensors and the numbers of a state, by file name and then by their own name."""

    tensors: dict[str, dict[str, torch.Tensor]]
    numbers: dict[str, dict[str, Any]]

    def write(self, folder: Path) -> None:
        """Write the files into `folder`."""
        for name, tensors in self.tensors.items():
            save_file(tensors, folder / name)
        for name, numbers in self.numbers.items():
            files.write_json(folder / name, numbers)

    @property
    def num_bytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(t.nbytes for tensors in self.tensors.values() for t in tensors.values())


@dataclass
class Snapshot:
    """A `protocols.CheckpointSource` that is valid until the next snapshot."""

    model: TrainableModel
    state: StateFiles

    def save(self, folder: Path) -> None:
        """Write the state to `folder`."""
        self.state.write(folder)

    def gathered_weights(self) -> AbstractContextManager[None]:
        """Do nothing: the networks always have the weights to publish."""
        return contextlib.nullcontext()


class Snapshots:
    """Takes snapshots of a model, each in the memory of the previous one.

    Copying into memory that the process already has is many times faster than into new memory.
    """

    def __init__(self, model: TrainableModel) -> None:
        self._model = model
        self._kept: dict[tuple[str, str], torch.Tensor] = {}
        self._shadow: TrainableModel | None = None
        self._is_refused = False

    def take(self, state: StateFiles, *, published: str) -> Snapshot | None:
        """Copy the tensors; the networks get those of the file `published`.

        Returns None, and logs it once, if the host has too little memory for a first copy.
        """
        if not self._has_room(state):
            return None
        copies = {
            file: {name: self._copied(file, name, t) for name, t in tensors.items()}
            for file, tensors in state.tensors.items()
        }
        if self._shadow is None:
            self._shadow = _shadow_of(self._model)
        for name, parameter in self._shadow.trainable.items():
            parameter.data = copies[published][name].to(parameter.dtype)
        return Snapshot(self._shadow, replace(state, tensors=copies))

    def _has_room(self, state: StateFiles) -> bool:
        if self._kept or self._is_refused:
            return not self._is_refused
        needed, free = _ROOM * state.num_bytes, available_bytes()
        self._is_refused = free < needed
        if self._is_refused:
            log_line(
                "note: the training waits for each save: asynchronous saves need "
                f"{needed / _GIB:.1f} GiB of free memory, found {free / _GIB:.1f} GiB"
            )
        return not self._is_refused

    def _copied(self, file: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
        kept = self._kept.get((file, name))
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            kept = self._kept[file, name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return kept.copy_(tensor)


def _shadow_of(model: TrainableModel) -> TrainableModel:
    """Copy the networks with new, empty trainable parameters; frozen tensors are shared.

    Wrappers for the training cannot be copied and are left out.
    """
    own = {n: nn.Parameter(torch.empty(0, dtype=p.dtype)) for n, p in model.trainable.items()}
    replaced = {id(p): own[name] for name, p in model.trainable.items()}
    tensors = (*model.denoiser.parameters(), *model.denoiser.buffers())
    memo: dict[int, Any] = {id(tensor): replaced.get(id(tensor), tensor) for tensor in tensors}
    parts: dict[str, Any] = copy.deepcopy(model.denoiser.parts, memo)
    groups = tuple(
        replace(group, parameters={name: own[name] for name in group.parameters})
        for group in model.groups
    )
    return replace(model, denoiser=Denoiser(parts.pop("unet"), parts), groups=groups)
