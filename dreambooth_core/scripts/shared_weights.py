"""Weights that a checkpoint's networks and its resume state share, stored once.

After a full fine-tune both have the same fp32 weights, a third of the checkpoint's size. The state
of an adapter stays complete, and so does a state that is split over processes: a resume reads its
weights from the networks or from the adapter's file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth_core import files
from dreambooth_core.models.lora import LORA_FILE, name_in_file
from dreambooth_core.models.weights import COMPONENTS, name_in
from dreambooth_core.training import protocols
from dreambooth_core.training.optim.ddp import WEIGHTS

_BESIDE = "beside.json"
"""In a state: the names of the weights that only the networks' files have."""


def remove_shared(state: Path, *, checkpoint: Path) -> None:
    """Remove from a new state the weights that the checkpoint's networks have bit by bit."""
    path = state / WEIGHTS
    if not path.is_file():
        return
    own = load_file(path)
    beside = sorted(n for n, tensor in _in_networks(checkpoint, own) if _is_same(tensor, own[n]))
    if not beside:
        return
    rest = {name: tensor for name, tensor in own.items() if name not in set(beside)}
    path.unlink()
    if rest:
        save_file(rest, path)
    files.write_json(state / _BESIDE, beside)


def is_complete(state: Path) -> bool:
    """Whether a state has all its weights in its own folder."""
    return not (state / _BESIDE).is_file()


def read_weights(
    state: Path, *, checkpoint: Path, trained: Collection[str]
) -> dict[str, torch.Tensor]:
    """All weights of a verified checkpoint's state; of a split state those of `trained`."""
    if protocols.saved_state_kind(state).is_split:
        return dict(_published(checkpoint, trained))
    own = load_file(state / WEIGHTS) if (state / WEIGHTS).is_file() else {}
    return own | dict(_in_networks(checkpoint, _names_beside(state)))


def read_shapes(
    state: Path, *, checkpoint: Path, trained: Collection[str]
) -> dict[str, Sequence[int]]:
    """The shapes of the weights that `read_weights` returns."""
    if protocols.saved_state_kind(state).is_split:
        return {name: list(tensor.shape) for name, tensor in _published(checkpoint, trained)}
    shapes: dict[str, Sequence[int]] = {}
    if (state / WEIGHTS).is_file():
        with safe_open(state / WEIGHTS, framework="pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    beside = _in_networks(checkpoint, _names_beside(state))
    return shapes | {name: list(tensor.shape) for name, tensor in beside}


def _names_beside(state: Path) -> list[str]:
    return [] if is_complete(state) else json.loads((state / _BESIDE).read_bytes())


def _published(checkpoint: Path, trained: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in the files for inference, under their names in the training.

    These are all weights of an adapter, and of a network those that are trained, or all if none
    is trained now.
    """
    adapter = checkpoint / LORA_FILE
    if adapter.is_file():
        name_of = {name_in_file(name): name for name in trained}
        yield from ((name_of.get(key, key), tensor) for key, tensor in load_file(adapter).items())
        return
    yield from _in_networks(checkpoint, trained)
    parts = {name.split(".", 1)[0] for name in trained}
    for path in _network_files(checkpoint, *(part for part in COMPONENTS if part not in parts)):
        yield from ((f"{path.parent.name}.{key}", t) for key, t in load_file(path).items())


def _in_networks(checkpoint: Path, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The named weights in the checkpoint's network files, one at a time."""
    for part in COMPONENTS:
        prefix = f"{part}."
        wanted = {n.removeprefix(prefix) for n in names if n.startswith(prefix)}
        for path in _network_files(checkpoint, part):
            with safe_open(path, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    if (name := name_in(wanted, key)) in wanted:
                        yield prefix + name, opened.get_tensor(key)


def _network_files(checkpoint: Path, *parts: str) -> list[Path]:
    return [p for part in parts for p in sorted((checkpoint / part).glob("*.safetensors"))]


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    left, right = (tensor.reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(left, right)
