"""The trained model: the base model's networks, parameter groups and loss settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dreambooth_core.config import TrainSettings
from dreambooth_core.models import text
from dreambooth_core.models.denoiser import Denoiser
from dreambooth_core.models.initial_weights import load_initial_weights
from dreambooth_core.models.kernels import compile_blocks, use_xformers
from dreambooth_core.models.load import load_component, load_text_encoders
from dreambooth_core.models.lora import add_adapter, require_layers, write_adapter
from dreambooth_core.models.weights import write_networks
from dreambooth_core.records import Method
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.precision import cast_trainable, loaded_type
from dreambooth_core.training.step import LossSettings


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable parameters with one learning rate, by name and in a fixed order.

    `part` is the name of their network. The group is frozen after `num_steps` updates; None trains
    it to the end.
    """

    part: str
    parameters: dict[str, nn.Parameter]
    learning_rate: float
    num_steps: int | None = None

    def is_trained_at(self, step: int) -> bool:
        """Return whether the update after `step` completed ones trains the group."""
        return self.num_steps is None or step < self.num_steps


@dataclass(frozen=True)
class TrainableModel:
    """The networks in training mode, and the groups of their trained parameters."""

    denoiser: Denoiser
    groups: tuple[ParameterGroup, ...]
    loss: LossSettings
    method: Method

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """All trainable parameters, group by group."""
        return {name: p for group in self.groups for name, p in group.parameters.items()}

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Load all trainable parameters from `weights`; do nothing if it is empty."""
        trainable = self.trainable if weights else {}
        assert weights.keys() == trainable.keys(), "the weights belong to another model"
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(weights[name])

    def write(self, folder: Path) -> None:
        """Write the trained networks, or the LoRA adapters, in the format of inference tools."""
        write = write_adapter if self.method == "lora" else write_networks
        write(self.denoiser.parts, folder)


def load_trainable_model(job: TrainJob, *, device: torch.device) -> TrainableModel:
    """Load the base model's networks on `device` and mark their trained parameters.

    Raises SettingsError if the settings name adapter layers that the networks do not have.
    """
    denoiser = _load_denoiser(job, device=device)
    if job.train.method == "lora" and job.train.lora is not None:
        require_layers(denoiser.parts, job.train.lora)
    for part, module in denoiser.parts.items():
        if job.train.method == "lora":
            assert job.train.lora is not None  # the settings guarantee it
            add_adapter(module, job.train.lora, part=part, seed=job.train.seed)
        else:
            module.requires_grad_(True)
        if job.train.gradient_checkpointing:
            _checkpoint_gradients(module)
    if job.init_dir is not None:
        load_initial_weights(denoiser.parts, job.init_dir, job.train)
    for parameter in text.unread_parameters(denoiser.text_encoders):
        parameter.requires_grad_(False)
    if job.train.compile_blocks:
        compile_blocks(denoiser.unet, device=device)
    denoiser.train()
    model = TrainableModel(
        denoiser=denoiser,
        groups=_groups(denoiser, job.train),
        loss=_loss_settings(job),
        method=job.train.method,
    )
    cast_trainable(model.trainable, job.train)
    return model


def _load_denoiser(job: TrainJob, *, device: torch.device) -> Denoiser:
    base, root, dtype = job.base_model, job.workspace_root, loaded_type(job.train)
    unet = load_component("unet", base, root, device=device, dtype=dtype)
    if job.train.enable_xformers_memory_efficient_attention:
        use_xformers(unet, device=device)
    if not job.train.train_text_encoder:
        return Denoiser(unet)
    return Denoiser(unet, load_text_encoders(base, root, device=device, dtype=dtype))


def _checkpoint_gradients(module: nn.Module) -> None:
    """Enable gradient checkpointing, which diffusers and transformers name differently."""
    model: Any = module
    if hasattr(model, "enable_gradient_checkpointing"):
        model.enable_gradient_checkpointing()
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _groups(denoiser: Denoiser, train: TrainSettings) -> tuple[ParameterGroup, ...]:
    """Build one group per network, each with its own learning rate."""
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
