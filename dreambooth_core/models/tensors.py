"""Tensors on disk and in memory: deterministic safetensors files, temporary eval mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save

from dreambooth_core import files
from dreambooth_core.errors import CorruptRecordError, repeat_hint

LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError)
"""What `from_pretrained` raises for a folder that holds no whole model."""


def tensor_bytes(
    tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None
) -> bytes:
    """A safetensors file of `tensors` in memory, with the header's keys in sorted order.

    The library writes metadata in the random order of a hash map, so two keys are enough to make
    files differ.
    """
    import json

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    raw = save(ready, metadata={"format": "pt", **(metadata or {})})
    header_end = 8 + int.from_bytes(raw[:8], "little")
    header = files.canonical_json(json.loads(raw[8:header_end])).encode()
    header += b" " * (-len(header) % 8)  # the data must begin at a multiple of eight
    return len(header).to_bytes(8, "little") + header + raw[header_end:]


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write small tensors (adapters, latents) to a safetensors file, whole or not at all."""
    files.write_bytes(path, tensor_bytes(tensors, metadata=metadata))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU. Raises CorruptRecordError."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CorruptRecordError(f"{path} does not exist", hint=repeat_hint(path)) from None
    except (safetensors.SafetensorError, OSError) as error:
        raise CorruptRecordError(
            f"{path} is not a complete safetensors file", got=str(error), hint=repeat_hint(path)
        ) from None


@contextlib.contextmanager
def eval_mode(*modules: torch.nn.Module) -> Iterator[None]:
    """Put the modules in evaluation mode inside the block, then restore every submodule's mode."""
    training = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, was_training in training:
            part.training = was_training
