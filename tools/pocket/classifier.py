"""pocket-classifier: a small CNN that predicts thing, colour and place of an image.

It trains on drawn scenes alone and shares nothing with the other pocket models, so it can evaluate
whether their samples match the prompt.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from tools.pocket.clip import jitter_pixels
from tools.pocket.loop import Losses
from tools.pocket.scenes import COLOUR_NAMES, PLACE_NAMES, THING_NAMES, SceneSet
from tools.pocket.settings import PocketSettings
from tools.pocket.vae import to_pixels

HEADS = {"thing": THING_NAMES, "colour": COLOUR_NAMES, "place": PLACE_NAMES}
WEIGHTS_NAME = "model.safetensors"


class PocketClassifier(nn.Module):
    """Images (B, 3, 64, 64) in -1..1 to logits (B, classes) per head."""

    def __init__(self, *, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for wide in (width, 2 * width, 4 * width, 4 * width):
            layers += [
                nn.Conv2d(channels, wide, 3, stride=2, padding=1),
                nn.GroupNorm(8, wide),
                nn.ReLU(),
                nn.Conv2d(wide, wide, 3, padding=1),
                nn.GroupNorm(8, wide),
                nn.ReLU(),
            ]
            channels = wide
        self.body = nn.Sequential(*layers, nn.Flatten())
        features = 16 * channels
        self.heads = nn.ModuleDict(
            {name: nn.Linear(features, len(classes)) for name, classes in HEADS.items()}
        )

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits per head."""
        features = self.body(pixels)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def predict(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The most likely class index per image and head, (B,) each."""
        return {name: logits.argmax(1) for name, logits in self(pixels).items()}


def load_classifier(folder: Path) -> PocketClassifier:
    """The packed classifier in fp32, in eval mode."""
    model = PocketClassifier()
    weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_NAME).items()}
    model.load_state_dict(weights)
    return model.eval()


def soften(pixels: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Blur half of the images slightly: samples are less sharp than drawn scenes."""
    soft = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand(len(pixels), 1, 1, 1, generator=generator)
    share = share * (torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5)
    return pixels.lerp(soft, share)


class ClassifierLosses:
    """Cross-entropy of the three heads."""

    def __init__(self, scenes: SceneSet, *, settings: PocketSettings, device: torch.device) -> None:
        self._images = torch.from_numpy(scenes.images)
        self._labels = torch.from_numpy(scenes.labels)
        self._settings, self._device = settings, device

    def __call__(self, model: nn.Module, generator: torch.Generator) -> Losses:
        """The losses of one batch."""
        batch = self._settings.classifier.batch
        rows = torch.randint(len(self._images), (batch,), generator=generator)
        pixels = soften(to_pixels(self._images[rows]), generator=generator)
        pixels = jitter_pixels(pixels, generator=generator).to(self._device)
        targets = self._labels[rows, :3].to(self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            logits = model(pixels)
        losses = [
            functional.cross_entropy(logits[name].float(), targets[:, column])
            for column, name in enumerate(HEADS)
        ]
        hits = [
            (logits[name].argmax(1) == targets[:, column]).float().mean()
            for column, name in enumerate(HEADS)
        ]
        return {"loss": torch.stack(losses).sum(), "right": torch.stack(hits).min()}
