"""The forward process: keyed noise and timesteps, noisy latents, and what the network predicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dreambooth_core.numerics.seeding import derive_seed, generator_for
from dreambooth_core.numerics.snr import PredictionType

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
