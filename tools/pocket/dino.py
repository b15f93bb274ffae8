"""pocket-dino: a small ViT trained without labels to tell individuals apart.

Two pictures of one individual, in other places and poses, are drawn as a pair; everything else in
the batch is a negative, among it the pair's twin: another individual of the same thing and colour.
The names of things and colours are never used. The feature is the pooled output (`pooler_output`).
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
    """An untrained ViT over 64 px pictures in patches of 8."""
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
    """InfoNCE over pairs of views; `rebuilt` holds the same pictures after the VAE, used in half.

    `scenes` are ordered: `views` pictures per individual, individuals 2k and 2k+1 are twins.
    """

    def __init__(
        self, scenes: SceneSet, *, rebuilt: torch.Tensor | None, settings: PocketSettings,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._images = torch.from_numpy(scenes.images)
        self._rebuilt = rebuilt
        self._settings, self._device = settings, device

    def _view(self, rows: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        pixels = to_pixels(self._images[rows])
        if self._rebuilt is not None:
            swap = torch.rand(len(rows), generator=generator) < 0.5
            pixels[swap] = to_pixels(self._rebuilt[rows[swap]])
        flip = torch.rand(len(rows), generator=generator) < 0.5
        pixels[flip] = pixels[flip].flip(-1)
        return jitter_pixels(pixels, generator=generator)

    def __call__(self, model: nn.Module, generator: torch.Generator) -> Losses:
        """The losses of one batch."""
        settings = self._settings
        views, pairs = settings.views_per_individual, settings.dino.batch // 2
        couples = torch.randperm(len(self._images) // (2 * views), generator=generator)[:pairs]
        people = torch.cat([2 * couples, 2 * couples + 1])
        first = torch.randint(views, (len(people),), generator=generator)
        second = (first + torch.randint(1, views, (len(people),), generator=generator)) % views
        pixels = torch.cat(
            [
                self._view(people * views + first, generator=generator),
                self._view(people * views + second, generator=generator),
            ]
        ).to(self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            features = model(pixels).pooler_output
        features = functional.normalize(features.float(), dim=1)
        left, right = features.chunk(2)
        similarity = left @ right.T / TEMPERATURE
        answer = torch.arange(len(people), device=self._device)
        loss = (
            functional.cross_entropy(similarity, answer)
            + functional.cross_entropy(similarity.T, answer)
        ) / 2
        hits = (similarity.argmax(1) == answer).float().mean()
        return {"loss": loss, "top1": hits}
