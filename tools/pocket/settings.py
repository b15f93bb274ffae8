"""All sizes and hyperparameters of the pocket models.

They fit two hours on one CPU core; `docs/pocket.md` lists the time per part.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSettings:
    """Hyperparameters of one part: `steps` optimizer steps of `batch` samples."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    save_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PocketSettings:
    """The whole recipe. `image` is the side of an image in pixels."""

    seed: int = 20240817
    image: int = 64
    num_train: int = 24_000
    num_test: int = 2_000
    num_individuals: int = 3_000
    views_per_individual: int = 4
    #: One in this many (thing, colour, place) triples never appears in training.
    held_out_one_in: int = 10
    context_tokens: int = 24
    clip_width: int = 128
    clip_text_layers: int = 3
    clip_vision_layers: int = 4
    clip_patch: int = 8
    dino_width: int = 128
    dino_layers: int = 4
    unet_channels: tuple[int, ...] = (128, 128)
    unet_layers: int = 1
    unet_heads: int = 4
    latent_channels: int = 8
    vae_channels: tuple[int, ...] = (16, 32, 64, 128)
    vae: PartSettings = field(
        default=PartSettings(steps=2_600, batch=16, learning_rate=2e-3, weight_decay=0.0)
    )
    clip: PartSettings = field(
        default=PartSettings(steps=1_400, batch=128, learning_rate=1.5e-3, weight_decay=0.05)
    )
    identifiers: PartSettings = field(
        default=PartSettings(steps=800, batch=128, learning_rate=1e-3, weight_decay=0.0)
    )
    dino: PartSettings = field(
        default=PartSettings(steps=1_200, batch=96, learning_rate=1.5e-3, weight_decay=0.05)
    )
    classifier: PartSettings = field(
        default=PartSettings(steps=800, batch=128, learning_rate=2e-3, weight_decay=0.05)
    )
    unet: PartSettings = field(
        default=PartSettings(
            steps=7_800, batch=64, learning_rate=2.5e-3, warmup=200, ema_decay=0.9995
        )
    )


POCKET = PocketSettings()
