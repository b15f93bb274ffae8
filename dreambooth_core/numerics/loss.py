"""The DreamBooth loss: per-example errors, reduced once, by role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

# B rows, C H W what the network predicts, R the two roles (instance, class)


class LossParts(NamedTuple):
    """Scalars: the loss that is minimised, and its two expectations."""

    total: torch.Tensor
    instance: torch.Tensor
    class_: torch.Tensor


def mse_per_example(pred_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each row, in fp32 (Ho et al. 2020, eq. 14). Returns [B]."""
    return (pred_BCHW.float() - target_BCHW.float()).square().flatten(1).mean(1)


def role_weights(is_class_B: Sequence[bool]) -> torch.Tensor:
    """[R, B] weights that average the instance rows and, apart from them, the class rows.

    The second line is zero where there is no class row.
    """
    is_class = torch.tensor(is_class_B, dtype=torch.float32)
    weights_RB = torch.stack([1 - is_class, is_class])
    return weights_RB / weights_RB.sum(1, keepdim=True).clamp(min=1)


def prior_preserving_loss(
    loss_B: torch.Tensor, weights_RB: torch.Tensor, *, prior_loss_weight: float
) -> LossParts:
    """L = E[instance] + lambda E[class] (Ruiz et al. 2023, eq. 2)."""
    instance, class_ = weights_RB @ loss_B
    return LossParts(instance + prior_loss_weight * class_, instance, class_)
