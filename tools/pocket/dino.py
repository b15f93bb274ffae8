"""pocket-dino: a small ViT trained without labels to distinguish individuals.

A positive pair is two scenes of one individual in different places and poses. All other images of
the batch are negatives, including the twin: another individual of the same thing and colour. The
loss uses no class names. The feature is the pooled output (`pooler_output`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import ViTConfig, ViTModel

from tools.pocket.clip import jitter_pixels
from tools.pocket.loop import Losses
from tools.pocket.scenes import SceneSet
from tools.pocket.settings import PocketSettings
from tools.pocket.vae import to_pixels

TEMPERATURE = 0.1


def make_dino(settings: PocketSettings) -> ViTModel:
    """An untrained ViT for 64 px images in patches of 8."""
    width = settings.dino_width
    return ViTModel(
        ViTConfig(
            image_size=settings.image,
            patch_size=settings.clip_patch,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=settings.dino_layers,
            num_attention_heads=width // 32,
            hidden_act="gelu",
            attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
            pooler_output_size=width,
            pooler_act="linear",
        ),
        add_pooling_layer=True,
    )


class DinoLosses:
    """InfoNCE over pairs of views; VAE reconstructions replace half of the images.

    `scenes` has `views_per_individual` rows per individual; individuals 2k and 2k+1 are twins.
    """

    def __init__(
        self, scenes: SceneSet, *, reconstructions: torch.Tensor, settings: PocketSettings,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._images = torch.from_numpy(scenes.images)
        self._reconstructions = reconstructions
        self._settings, self._device = settings, device

    def _view(self, rows: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        pixels = to_pixels(self._images[rows])
        swap = torch.rand(len(rows), generator=generator) < 0.5
        pixels[swap] = to_pixels(self._reconstructions[rows[swap]])
        flip = torch.rand(len(rows), generator=generator) < 0.5
        pixels[flip] = pixels[flip].flip(-1)
        return jitter_pixels(pixels, generator=generator)

    def __call__(self, model: nn.Module, generator: torch.Generator) -> Losses:
        """The losses of one batch."""
        settings = self._settings
        views, pairs = settings.views_per_individual, settings.dino.batch // 2
        twins = torch.randperm(len(self._images) // (2 * views), generator=generator)[:pairs]
        individuals = torch.cat([2 * twins, 2 * twins + 1])
        first = torch.randint(views, (len(individuals),), generator=generator)
        second = (first + torch.randint(1, views, (len(individuals),), generator=generator)) % views
        pixels = torch.cat(
            [
                self._view(individuals * views + first, generator=generator),
                self._view(individuals * views + second, generator=generator),
            ]
        ).to(self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            features = model(pixels).pooler_output
        features = functional.normalize(features.float(), dim=1)
        left, right = features.chunk(2)
        similarity = left @ right.T / TEMPERATURE
        target = torch.arange(len(individuals), device=self._device)
        loss = (
            functional.cross_entropy(similarity, target)
            + functional.cross_entropy(similarity.T, target)
        ) / 2
        hits = (similarity.argmax(1) == target).float().mean()
        return {"loss": loss, "top1": hits}
