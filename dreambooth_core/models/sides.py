"""The sides of images that a base model can generate and encode. Torch-free."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dreambooth_core.config.yaml_files import mapping
from dreambooth_core.models import source

_DIFFUSERS_MULTIPLE = 8
"""The pipelines of diffusers refuse other sides, whatever the VAE needs."""


def side_problem(side: int, folder: Path | None) -> str | None:
    """Why a model cannot use images of this side, with the nearest allowed; None if it can.

    `folder` is None for a model that is not on this machine.
    """
    multiple = math.lcm(_DIFFUSERS_MULTIPLE, _vae_factor(folder) if folder else 1)
    if side % multiple == 0:
        return None
    below = side - side % multiple
    near = [str(each) for each in (below, below + multiple) if each > 0]
    return (
        f"{side}, but this base model needs a multiple of {multiple}; nearest: {' or '.join(near)}"
    )


def trained_side(folder: Path) -> int | None:
    """The side that a model was trained at, from its configs; None if they do not say it."""
    size = _config(folder, "unet").get("sample_size")
    return size * _vae_factor(folder) if isinstance(size, int) else None


def _vae_factor(folder: Path) -> int:
    """How many pixels a side of a latent stands for."""
    blocks = _config(folder, "vae").get("block_out_channels")
    return 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else 1


def _config(folder: Path, part: str) -> dict[str, Any]:
    return mapping(source.read_json_file(folder / part / "config.json", what="a saved pipeline"))
