"""The diffusion objective: noise and timesteps, targets, min-SNR weights, the DreamBooth loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from dreambooth_core.numerics.seeding import derive_seed, generator_for

# B rows, C latent channels, H W latent height and width


def draw_noise(
    shape_CHW: Sequence[int], *, seed: int, is_class: bool, position: int, offset: float = 0.0
) -> torch.Tensor:
    """The noise of one row: a pure function of (seed, role, global sample position).

    With `offset`, each channel is shifted by as many standard deviations of a further normal
    number (offset noise, Guttenberg 2023); the noise without the shift stays the same.
    """
    generator = generator_for(seed, "diffusion-noise", int(is_class), position)
    noise_CHW = torch.randn(*shape_CHW, generator=generator)
    if offset:
        noise_CHW = noise_CHW + offset * torch.randn(shape_CHW[0], 1, 1, generator=generator)
    return noise_CHW


def draw_timestep(num_timesteps: int, *, seed: int, is_class: bool, position: int) -> int:
    """The timestep of one row, uniform over the schedule; keyed like its noise."""
    return derive_seed(seed, "timestep", int(is_class), position) % num_timesteps


def add_noise(
    z_BCHW: torch.Tensor, eps_BCHW: torch.Tensor, alpha_bar_B: torch.Tensor
) -> torch.Tensor:
    """Forward process q(z_t | z_0), Ho et al. 2020, eq. 4; returns z_t with z's shape."""
    signal, noise = _scales(alpha_bar_B)
    return signal * z_BCHW + noise * eps_BCHW


def prediction_target(
    z_BCHW: torch.Tensor,
    eps_BCHW: torch.Tensor,
    alpha_bar_B: torch.Tensor,
    *,
    prediction_type: PredictionType,
) -> torch.Tensor:
    """What the network must predict: the noise, v (Salimans and Ho 2022, section 4), or z_0."""
    match prediction_type:
        case "epsilon":
            return eps_BCHW
        case "v_prediction":
            signal, noise = _scales(alpha_bar_B)
            return signal * eps_BCHW - noise * z_BCHW
        case "sample":
            return z_BCHW


def _scales(alpha_bar_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    alpha_bar_B111 = alpha_bar_B[:, None, None, None]
    return alpha_bar_B111.sqrt(), (1 - alpha_bar_B111).sqrt()


PredictionType = Literal["epsilon", "v_prediction", "sample"]


def snr(alpha_bar_B: torch.Tensor) -> torch.Tensor:
    """alpha_bar / (1 - alpha_bar), per row (Kingma et al. 2021, eq. 2)."""
    return alpha_bar_B / (1 - alpha_bar_B)


def min_snr_weight(
    alpha_bar_B: torch.Tensor, *, gamma: float, prediction_type: PredictionType
) -> torch.Tensor:
    """min(SNR, gamma) in units of the predicted quantity (Hang et al. 2023, section 3.4).

    A network that predicts z_0 has the weight min(SNR, gamma); one that predicts the noise, that
    over SNR; one that predicts v, that over SNR + 1. Finite where SNR is 0.
    """
    snr_B = snr(alpha_bar_B)
    match prediction_type:
        case "epsilon":
            return (gamma / snr_B).clamp(max=1)
        case "v_prediction":
            return snr_B.clamp(max=gamma) / (snr_B + 1)
        case "sample":
            return snr_B.clamp(max=gamma)


# B rows, C H W what the network predicts, R the two roles (instance, class)


class LossParts(NamedTuple):
    """Scalars: the loss that is minimised, and its two expectations."""

    total: torch.Tensor
    instance: torch.Tensor
    class_: torch.Tensor


def mse_per_example(
    pred_BCHW: torch.Tensor, target_BCHW: torch.Tensor, weights_B1HW: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error of each row, in fp32 (Ho et al. 2020, eq. 14). Returns [B].

    With `weights_B1HW`, each position counts by its weight.
    """
    error_BCHW = (pred_BCHW.float() - target_BCHW.float()).square()
    if weights_B1HW is not None:
        error_BCHW = error_BCHW * weights_B1HW
    return error_BCHW.flatten(1).mean(1)


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
