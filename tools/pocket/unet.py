"""pocket-sd's U-Net: 8x8 latents, cross-attention to pocket-clip's text tower, v-prediction."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from tools.pocket.captions import draw_caption
from tools.pocket.loop import Losses
from tools.pocket.settings import PocketSettings
from tools.pocket.tokenizer import CaptionEncoder

#: Captions dropped in training, for classifier-free guidance.
EMPTY_SHARE = 0.10
#: Min-SNR weighting (Hang et al. 2023), capped at this signal-to-noise ratio.
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


def make_schedule() -> DDPMScheduler:
    """The noise schedule of training; the shipped sampler is made from the same numbers."""
    return DDPMScheduler(**SCHEDULE)


class UnetLosses:
    """v-prediction with min-SNR weights, on latents and text states that were computed once."""

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
        self._schedule = make_schedule()
        alphas = self._schedule.alphas_cumprod
        snr = alphas / (1 - alphas)
        self._weights = snr.clamp(max=MIN_SNR_GAMMA) / (snr + 1)

    def __call__(self, model: nn.Module, generator: torch.Generator) -> Losses:
        """The losses of one batch."""
        batch = self._settings.unet.batch
        rows = torch.randint(len(self._latents), (batch,), generator=generator)
        clean = self._latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        # One step from each of `batch` equal strata: the same mean, a much calmer gradient.
        offsets = torch.arange(batch) + torch.rand(batch, generator=generator)
        steps = (offsets * 1000 / batch).long().clamp(max=999)
        captions = [
            draw_caption(*self._labels[row, :3].tolist(), generator=generator)[0]
            for row in rows.tolist()
        ]
        dropped = (torch.rand(batch, generator=generator) < EMPTY_SHARE).tolist()
        captions = ["" if drop else text for drop, text in zip(dropped, captions, strict=True)]
        noisy = self._schedule.add_noise(clean, noise, steps).to(self._device)  # type: ignore[arg-type]
        target = self._schedule.get_velocity(clean, noise, steps).to(self._device)  # type: ignore[arg-type]
        states = self._text(captions).to(self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            guess = model(noisy, steps.to(self._device), encoder_hidden_states=states).sample
        error = (guess.float() - target).square().mean(dim=(1, 2, 3))
        weights = self._weights[steps].to(self._device)
        return {"loss": (weights * error).mean(), "plain": error.detach().mean()}


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
