"""pocket-clip: a small CLIPModel trained contrastively on scenes and captions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tools.pocket.captions import Mention, draw_caption
from tools.pocket.loop import Losses
from tools.pocket.scenes import SceneSet
from tools.pocket.settings import PocketSettings
from tools.pocket.tokenizer import CaptionEncoder
from tools.pocket.vae import to_pixels


def make_clip(settings: PocketSettings, *, tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP; its text tower is also pocket-sd's text encoder."""
    width = settings.clip_width
    common = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 32,
        "projection_dim": width,
        "hidden_act": "gelu",
    }
    text = {
        **common,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": settings.context_tokens,
        "num_hidden_layers": settings.clip_text_layers,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **common,
        "image_size": settings.image,
        "patch_size": settings.clip_patch,
        "num_hidden_layers": settings.clip_vision_layers,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def jitter_pixels(pixels: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Random shift (up to 4 px), gain, brightness and noise, against overfitting to sharp edges."""
    count, _, side, _ = pixels.shape
    padded = functional.pad(pixels, (4, 4, 4, 4), mode="replicate")
    across, down = torch.randint(0, 9, (2, count), generator=generator).tolist()
    moved = torch.stack(
        [
            image[:, y : y + side, x : x + side]
            for image, x, y in zip(padded, across, down, strict=True)
        ]
    )
    gain = 1 + 0.1 * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    shift = 0.1 * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    strength = 0.08 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = strength * torch.randn(moved.shape, generator=generator)
    return (moved * gain + shift + noise).clamp(-1, 1)


def same_mention(mentions: list[Mention]) -> torch.Tensor:
    """(B, B) targets, rows summing to 1: equal mentions are each other's positives."""
    keys = [(m.thing, m.colour, m.place) for m in mentions]
    equal = torch.tensor([[a == b for b in keys] for a in keys], dtype=torch.float32)
    return equal / equal.sum(1, keepdim=True)


class ClipLosses:
    """Symmetric cross-entropy between images and captions."""

    def __init__(
        self, scenes: SceneSet, *, settings: PocketSettings, encoder: CaptionEncoder,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._images = torch.from_numpy(scenes.images)
        self._labels = scenes.labels
        self._settings, self._encoder, self._device = settings, encoder, device

    def __call__(self, model: nn.Module, generator: torch.Generator) -> Losses:
        """The losses of one batch."""
        assert isinstance(model, CLIPModel)
        batch = self._settings.clip.batch
        rows = torch.randint(len(self._images), (batch,), generator=generator)
        drawn = [
            draw_caption(*map(int, self._labels[row, :3]), generator=generator)
            for row in rows.tolist()
        ]
        ids = self._encoder([caption for caption, _ in drawn]).to(self._device)
        pixels = jitter_pixels(to_pixels(self._images[rows]), generator=generator)
        targets = same_mention([mention for _, mention in drawn]).to(self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            output = model(input_ids=ids, pixel_values=pixels.to(self._device))
        logits = output.logits_per_image.float().clamp(-100, 100)
        loss = (
            functional.cross_entropy(logits, targets)
            + functional.cross_entropy(logits.T, targets.T / targets.T.sum(1, keepdim=True))
        ) / 2
        hits = targets.gather(1, logits.argmax(1, keepdim=True)).gt(0).float().mean()
        return {"loss": loss, "top1": hits}
