"""What is trained: the base model's U-Net, its trainable parameters and its noise schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from dreambooth_core.models.load import load_component
from dreambooth_core.models.lora import add_adapter
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.step import LossSettings


@dataclass(frozen=True)
class Trainee:
    """A U-Net in training mode with its trainable parameters by name, in a fixed order."""

    unet: UNet2DConditionModel
    trainable: dict[str, nn.Parameter]
    loss: LossSettings


def load_trainee(job: TrainJob, *, device: torch.device) -> Trainee:
    """Load the base U-Net in fp32, choose what is trained, and put it on `device`."""
    unet = load_component("unet", job.base_model, job.workspace_root, device=device)
    unet.requires_grad_(job.train.method == "full")
    if job.train.lora is not None and job.train.method == "lora":
        add_adapter(unet, job.train.lora, seed=job.train.seed)
    unet.train()
    if job.train.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    trainable = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    return Trainee(unet=unet, trainable=trainable, loss=_loss_settings(job))


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
