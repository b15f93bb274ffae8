"""pocket-sd's U-Net: 8x8 latents, cross-attention to pocket-clip's text tower, v-prediction."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from dreambooth_core.numerics.diffusion import (
    add_noise,
    min_snr_weight,
    mse_per_example,
    prediction_target,
)
from tools.pocket.captions import draw_caption
from tools.pocket.loop import Losses
from tools.pocket.settings import PocketSettings
from tools.pocket.tokenizer import CaptionEncoder

#: Share of captions dropped in training, for classifier-free guidance.
EMPTY_SHARE = 0.10
#: Cap of the signal-to-noise ratio in the loss weights (Hang et al. 2023).
MIN_SNR_GAMMA = 5.0
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}


def make_unet(settings: PocketSettings) -> UNet2DConditionModel:
    """An untrained U-Net for latents of (B, latent_channels, image / 8, image / 8)."""
    levels = len(settings.unet_channels)
    return UNet2DConditionModel(
        sample_size=settings.image // 8,
        in_channels=settings.latent_channels,
        out_channels=settings.latent_channels,
        block_out_channels=settings.unet_channels,
        layers_per_block=settings.unet_layers,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=settings.clip_width,
        attention_head_dim=settings.unet_heads,
        norm_num_groups=16,
    )


class UnetLosses:
    """v-prediction loss with min-SNR weights, on precomputed latents and text states."""

    def __init__(
        self,
        *,
        latents: torch.Tensor,
        labels: torch.Tensor,
        text_states: TextStates,
        settings: PocketSettings,
        device: torch.device,
    ) -> None:
        self._latents, self._labels, self._text = latents, labels, text_states
        self._settings, self._device = settings, device
        self._alphas_cumprod = DDPMScheduler(**SCHEDULE).alphas_cumprod

    def __call__(self, model: nn.Module, generator: torch.Generator) -> Losses:
        """The losses of one batch."""
        batch = self._settings.unet.batch
        rows = torch.randint(len(self._latents), (batch,), generator=generator)
        clean = self._latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        # One timestep from each of `batch` equal strata: the same mean, a far less noisy gradient.
        offsets = torch.arange(batch) + torch.rand(batch, generator=generator)
        steps = (offsets * 1000 / batch).long().clamp(max=999)
        states = self._text(self._draw_captions(rows, generator=generator)).to(self._device)
        alpha_bar = self._alphas_cumprod[steps]
        noisy = add_noise(clean, noise, alpha_bar).to(self._device)
        target = prediction_target(clean, noise, alpha_bar, prediction_type="v_prediction")
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            output = model(noisy, steps.to(self._device), encoder_hidden_states=states).sample
        error = mse_per_example(output, target.to(self._device))
        weights = min_snr_weight(alpha_bar, gamma=MIN_SNR_GAMMA, prediction_type="v_prediction")
        weighted = (weights.to(self._device) * error).mean()
        return {"loss": weighted, "plain": error.detach().mean()}

    def _draw_captions(self, rows: torch.Tensor, *, generator: torch.Generator) -> list[str]:
        captions = [
            draw_caption(*self._labels[row, :3].tolist(), generator=generator)[0]
            for row in rows.tolist()
        ]
        dropped = (torch.rand(len(rows), generator=generator) < EMPTY_SHARE).tolist()
        return ["" if drop else text for drop, text in zip(dropped, captions, strict=True)]


class TextStates:
    """Last hidden states of the text tower, computed once per caption: (B, tokens, width)."""

    def __init__(self, encoder: CaptionEncoder, tower: nn.Module) -> None:
        self._encoder, self._tower = encoder, tower
        self._states: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        """The states of the captions, on the CPU."""
        new = [text for text in dict.fromkeys(captions) if text not in self._states]
        if new:
            device = next(self._tower.parameters()).device
            states = self._tower(self._encoder(new).to(device)).last_hidden_state.cpu()
            self._states.update(zip(new, states, strict=True))
        return torch.stack([self._states[text] for text in captions])
