"""The loss of one micro-step as a function of its rows, without state or global randomness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dreambooth_core.models.denoiser import TrainBatch
from dreambooth_core.numerics.diffusion import (
    LossParts,
    PredictionType,
    add_noise,
    draw_noise,
    draw_timestep,
    min_snr_weight,
    mse_per_example,
    prediction_target,
    prior_preserving_loss,
    role_weights,
)

# B rows, R the two roles, T timesteps of the schedule, C H W latents, L tokens, D text width


@dataclass(frozen=True)
class LossSettings:
    """What the loss depends on besides the rows; `alpha_bar_T` is a CPU tensor."""

    alpha_bar_T: torch.Tensor
    prediction_type: PredictionType
    prior_loss_weight: float | None
    snr_gamma: float | None
    offset_noise: float
    seed: int


@dataclass(frozen=True)
class StepInput:
    """The tensors of a micro-step on the device, and the rows' names for error messages.

    `condition` has the denoiser's text inputs by argument name. `weights_RB` weights each row's
    error in the instance loss and in the class loss, `loss_weights_B1HW` the positions of a row.
    """

    noisy_BCHW: torch.Tensor
    target_BCHW: torch.Tensor
    timestep_B: torch.Tensor
    condition: dict[str, torch.Tensor]
    weights_RB: torch.Tensor
    loss_weights_B1HW: torch.Tensor | None
    batch: TrainBatch
    timesteps: list[int]


def prepare(batch: TrainBatch, settings: LossSettings, *, device: torch.device) -> StepInput:
    """Draw noise and timesteps, compute noisy latents and targets, and move them to `device`."""
    _check_roles(batch, settings)
    timesteps, eps_BCHW = _draw(batch, settings)
    timestep_B = torch.tensor(timesteps)
    alpha_bar_B = settings.alpha_bar_T[timestep_B]
    weights_RB = role_weights(batch.is_class_B)
    if settings.snr_gamma is not None:
        # Per row and before any reduction: each row is weighted by its own timestep.
        weights_RB = weights_RB * min_snr_weight(
            alpha_bar_B, gamma=settings.snr_gamma, prediction_type=settings.prediction_type
        )
    target_BCHW = prediction_target(
        batch.latents_BCHW, eps_BCHW, alpha_bar_B, prediction_type=settings.prediction_type
    )
    loss_weights = batch.loss_weights_B1HW
    return StepInput(
        noisy_BCHW=add_noise(batch.latents_BCHW, eps_BCHW, alpha_bar_B).to(device),
        target_BCHW=target_BCHW.to(device),
        timestep_B=timestep_B.to(device),
        condition=_condition(batch, device),
        weights_RB=weights_RB.to(device),
        loss_weights_B1HW=None if loss_weights is None else loss_weights.to(device),
        batch=batch,
        timesteps=timesteps,
    )


def _condition(batch: TrainBatch, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the denoiser's text inputs on `device`, by argument name."""
    inputs = {
        "text_BLD": batch.text_BLD,
        "pooled_BP": batch.pooled_BP,
        "ids_EBL": batch.ids_EBL,
        "time_ids_B6": batch.time_ids_B6,
    }
    return {name: tensor.to(device) for name, tensor in inputs.items() if tensor is not None}


def _check_roles(batch: TrainBatch, settings: LossSettings) -> None:
    """Assert one instance row per position, and one class row if the prior is enabled."""
    num_class = sum(batch.is_class_B)
    num_instance = len(batch.is_class_B) - num_class
    expected = 0 if settings.prior_loss_weight is None else num_instance
    assert num_instance > 0, "a batch without instance rows"
    assert num_class == expected, f"{num_class} class rows for {num_instance} instance rows"


def _draw(batch: TrainBatch, settings: LossSettings) -> tuple[list[int], torch.Tensor]:
    shape_CHW = batch.latents_BCHW.shape[1:]
    rows = list(zip(batch.is_class_B, batch.position_B, strict=True))
    timesteps = [
        draw_timestep(
            len(settings.alpha_bar_T), seed=settings.seed, is_class=is_class, position=position
        )
        for is_class, position in rows
    ]
    noises = [
        draw_noise(
            shape_CHW,
            seed=settings.seed,
            is_class=is_class,
            position=position,
            offset=settings.offset_noise,
        )
        for is_class, position in rows
    ]
    return timesteps, torch.stack(noises)


def loss_of(
    denoiser: nn.Module, inputs: StepInput, *, prior_loss_weight: float | None
) -> tuple[LossParts, torch.Tensor]:
    """Return the loss parts (0-d) and each row's unweighted error [B], detached."""
    pred_BCHW = denoiser(inputs.noisy_BCHW, inputs.timestep_B, **inputs.condition)
    error_B = mse_per_example(pred_BCHW, inputs.target_BCHW, inputs.loss_weights_B1HW)
    loss = prior_preserving_loss(
        error_B, inputs.weights_RB, prior_loss_weight=prior_loss_weight or 0.0
    )
    return loss, error_B.detach()
