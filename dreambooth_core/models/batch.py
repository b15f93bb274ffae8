"""The rows of one micro-step, as the data side hands them to the training side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# B rows, C latent channels, H W latent height and width, E text encoders, L tokens, D text width


@dataclass(frozen=True)
class TrainBatch:
    """Rows for some global sample positions, on the CPU, in fp32.

    Every position gives one instance row and, with prior preservation, one class row. The role
    travels with the row, in any order. Diffusion noise and timestep are not in here: the training
    side draws them from (seed, role, position).
    """

    latents_BCHW: torch.Tensor
    """Scaled latents z_0: a sample of the VAE's posterior times its scaling factor."""
    text_BLD: torch.Tensor
    """Text embeddings of each row's prompt, by the base model's text encoder."""
    is_class_B: tuple[bool, ...]
    """Whether the row is of the role "class"."""
    position_B: tuple[int, ...]
    """The global sample position of each row."""
    image_B: tuple[str, ...]
    """Name of each row's image, for messages."""
    pooled_BP: torch.Tensor | None = None
    """Pooled text embeddings, where the base model has them (SDXL)."""
    ids_EBL: torch.Tensor | None = None
    """Token ids of each row's prompt for each text encoder: read when those are trained."""
    time_ids_B6: torch.Tensor | None = None
    """Original height and width, top and left of the crop, height and width of the view."""


RowsAt = Callable[[Sequence[int]], TrainBatch]
"""The rows at some global sample positions: a pure function of (seed, position)."""
