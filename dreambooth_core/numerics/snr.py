"""Signal-to-noise ratio and the min-SNR weight of a training row."""

from __future__ import annotations

from typing import Literal

import torch

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
