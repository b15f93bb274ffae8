"""What is trained: the base model's networks, their trainable parameters and the noise schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dreambooth_core.models.denoiser import Denoiser
from dreambooth_core.models.load import load_component
from dreambooth_core.models.lora import add_adapter
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.precision import cast_trainable
from dreambooth_core.training.step import LossSettings


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable parameters with one learning rate, by name and in a fixed order.

    `part` is the network that they belong to. `num_steps` is the number of updates after which
    they rest; None: they are trained to the end.
    """

    part: str
    parameters: dict[str, nn.Parameter]
    learning_rate: float
    num_steps: int | None = None

    def is_trained_at(self, step: int) -> bool:
        """Whether the update after `step` completed ones moves the group."""
        return self.num_steps is None or step < self.num_steps


@dataclass(frozen=True)
class Trainee:
    """The networks in training mode, and the groups of their parameters that are trained."""

    denoiser: Denoiser
    groups: tuple[ParameterGroup, ...]
    loss: LossSettings

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """All trainable parameters, group by group."""
        return {name: p for group in self.groups for name, p in group.parameters.items()}


def load_trainee(job: TrainJob, *, device: torch.device) -> Trainee:
    """Load the base model's networks in fp32, choose what is trained, and put it on `device`."""
    unet = load_component("unet", job.base_model, job.workspace_root, device=device)
    unet.requires_grad_(job.train.method == "full")
    if job.train.lora is not None and job.train.method == "lora":
        add_adapter(unet, job.train.lora, seed=job.train.seed)
    unet.train()
    if job.train.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    denoiser = Denoiser(unet)
    trainee = Trainee(denoiser=denoiser, groups=_groups(denoiser, job), loss=_loss_settings(job))
    cast_trainable(trainee.trainable, job.train)
    return trainee


def _groups(denoiser: Denoiser, job: TrainJob) -> tuple[ParameterGroup, ...]:
    """One group for each network, with the learning rate that is its own."""
    train = job.train
    text_rate = train.text_encoder_lr or train.peak_rate
    return tuple(
        ParameterGroup(
            part=part,
            parameters={
                f"{part}.{name}": p for name, p in module.named_parameters() if p.requires_grad
            },
            learning_rate=train.peak_rate if part == "unet" else text_rate,
            num_steps=None if part == "unet" else train.text_encoder_stop_step,
        )
        for part, module in denoiser.parts.items()
    )


def _loss_settings(job: TrainJob) -> LossSettings:
    scheduler = load_component("scheduler", job.base_model, job.workspace_root)
    return LossSettings(
        alpha_bar_T=scheduler.alphas_cumprod,
        prediction_type=scheduler.config["prediction_type"],
        prior_loss_weight=job.prior_loss_weight,
        snr_gamma=job.train.snr_gamma,
        offset_noise=job.train.offset_noise,
        seed=job.train.seed,
    )
