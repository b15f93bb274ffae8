"""pocket-sd's VAE: a KL autoencoder of factor 8 with few channels at full resolution."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torch.nn import functional

from tools.pocket.loop import Losses
from tools.pocket.scenes import SceneSet
from tools.pocket.settings import PocketSettings

KL_WEIGHT = 1e-6
GRADIENT_WEIGHT = 0.5
#: Additional loss weight of the thing's pixels over those of the place.
MASK_WEIGHT = 1.5


def make_vae(settings: PocketSettings) -> AutoencoderKL:
    """An untrained VAE; torch's global generator determines its weights."""
    levels = len(settings.vae_channels)
    options: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": settings.vae_channels,
        "layers_per_block": 1,
        "latent_channels": settings.latent_channels,
        "norm_num_groups": 8,
        "sample_size": settings.image,
        "mid_block_add_attention": False,
    }
    return AutoencoderKL(in_channels=3, out_channels=3, **options)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in -1..1."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def encode(vae: AutoencoderKL, pixels: torch.Tensor) -> DiagonalGaussianDistribution:
    """The posterior over latents (B, C, H / 8, W / 8) of images (B, 3, H, W) in -1..1."""
    encoded: Any = vae.encode(pixels)
    return encoded.latent_dist


def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W), about -1..1, from unscaled latents."""
    untyped: Any = vae
    return untyped.decode(latents).sample


def _edge_pairs(
    output: torch.Tensor, target: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(output.diff(dim=dim), target.diff(dim=dim)) for dim in (-1, -2)]


class VaeLosses:
    """Weighted L1 and L2, an edge term against blur, and a KL term weighted as in SD."""

    def __init__(self, scenes: SceneSet, *, settings: PocketSettings, device: torch.device) -> None:
        self._images = torch.from_numpy(scenes.images)
        self._masks = torch.from_numpy(scenes.masks)
        self._settings, self._device = settings, device

    def __call__(self, model: nn.Module, generator: torch.Generator) -> Losses:
        """The losses of one batch."""
        assert isinstance(model, AutoencoderKL)
        batch = self._settings.vae.batch
        rows = torch.randint(len(self._images), (batch,), generator=generator)
        pixels = to_pixels(self._images[rows]).to(self._device)
        weight = 1 + MASK_WEIGHT * self._masks[rows].float().div(255).unsqueeze(1).to(self._device)
        weight = weight / weight.mean()
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            posterior = encode(model, pixels)
            noise = torch.randn(posterior.mean.shape, generator=generator).to(self._device)
            decoded = decode(model, posterior.mean + posterior.std * noise)
        error = decoded.float() - pixels
        kl = posterior.kl().float().mean()
        edge = torch.stack(
            [functional.l1_loss(a, b) for a, b in _edge_pairs(decoded.float(), pixels)]
        ).sum()
        square = (weight * error.square()).mean()
        absolute = (weight * error.abs()).mean()
        loss = absolute + 2 * square + GRADIENT_WEIGHT * edge + KL_WEIGHT * kl
        psnr = -10 * torch.log10(error.detach().square().mean() / 4)
        return {"loss": loss, "psnr": psnr, "edge": edge.detach(), "kl": kl.detach()}
