"""Finds the subject in an image with the base model alone, from its latents.

Where the predictions for the class prompt and for an empty prompt differ most, there is the class
(Couairon et al. 2023, "DiffEdit", section 3.2). No other model and no download is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dreambooth_core.models.denoiser import Denoiser
from dreambooth_core.models.tensors import eval_mode
from dreambooth_core.models.text import TextEmbedding
from dreambooth_core.numerics.diffusion import add_noise
from dreambooth_core.numerics.seeding import generator_for

# V views, C latent channels, h w latent height and width, T timesteps of the schedule

_NUM_NOISES = 16
_NOISE_LEVELS = (0.4, 0.6)
"""The first and the last timestep, as parts of the schedule; DiffEdit adds 50 % noise."""
_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class SubjectFinder:
    """The base model's networks, and the embeddings of the class prompt and the empty prompt."""

    denoiser: Denoiser
    alpha_bar_T: torch.Tensor
    latent_scale: float
    text: TextEmbedding

    def find(
        self, mean_VChw: torch.Tensor, time_ids_V6: torch.Tensor, *, seed: int
    ) -> torch.Tensor:
        """1 where the subject is and 0 elsewhere, [V, h, w] on the CPU.

        `mean_VChw` are the VAE's means. The same image and seed give the same mask.
        """
        with eval_mode(self.denoiser), torch.inference_mode():
            views = zip(mean_VChw, time_ids_V6, strict=True)
            return torch.stack([self._find(mean, ids, seed=seed) for mean, ids in views])

    def _find(self, mean_Chw: torch.Tensor, time_ids_6: torch.Tensor, *, seed: int) -> torch.Tensor:
        contrast_hw = torch.zeros(mean_Chw.shape[1:])
        first, last = (level * (len(self.alpha_bar_T) - 1) for level in _NOISE_LEVELS)
        for number in range(_NUM_NOISES):
            timestep = round(first + (last - first) * number / (_NUM_NOISES - 1))
            noise_Chw = torch.randn(
                mean_Chw.shape, generator=generator_for(seed, "find-subject", number)
            )
            noisy_1Chw = add_noise(
                self.latent_scale * mean_Chw[None], noise_Chw[None], self.alpha_bar_T[[timestep]]
            )
            contrast_hw += self._contrast(noisy_1Chw, timestep, time_ids_6)
        low, high = contrast_hw.min(), contrast_hw.max()
        return (contrast_hw - low > _THRESHOLD * (high - low)).float()

    def _contrast(
        self, noisy_1Chw: torch.Tensor, timestep: int, time_ids_6: torch.Tensor
    ) -> torch.Tensor:
        """The mean absolute difference of the two predictions at each position."""
        device = self.text.text_BLD.device
        class_Chw, empty_Chw = self.denoiser(
            noisy_1Chw.repeat(2, 1, 1, 1).to(device),
            torch.tensor([timestep] * 2, device=device),
            text_BLD=self.text.text_BLD,
            pooled_BP=self.text.pooled_BP,
            time_ids_B6=time_ids_6.repeat(2, 1).to(device),
        )
        return (class_Chw.float() - empty_Chw.float()).abs().mean(0).cpu()
