"""Fine-tuning of the text tower: distinct hidden states for rare tokens, all others unchanged.

Contrastive training ignores meaningless words so well that `sks` ends with the state of an article,
and a U-Net could not bind a subject to it. This part adds a fixed offset to each rare token's state
at its own position. A frozen copy of the tower is the target everywhere else, so caption features
stay as they are.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import CLIPModel, CLIPTextModel

from dreambooth_core.numerics.seeding import generator_for
from tools.pocket.captions import RARE_TOKENS, draw_caption
from tools.pocket.loop import Losses
from tools.pocket.sample import draw_triples
from tools.pocket.settings import PocketSettings
from tools.pocket.tokenizer import CaptionEncoder

#: Norm of the offsets. States have a norm of about 11.7; those of two words are about 15 apart.
OFFSET_LENGTH = 10.0
#: Share of captions with a rare token.
SHARE = 0.5
#: Loss weight of all other positions relative to the rare token's.
KEEP_WEIGHT = 20.0


def rare_offsets(settings: PocketSettings) -> torch.Tensor:
    """A random vector of norm `OFFSET_LENGTH` per rare token, (tokens, width)."""
    generator = generator_for(settings.seed, "rare-offsets")
    directions = torch.randn(len(RARE_TOKENS), settings.clip_width, generator=generator)
    return OFFSET_LENGTH * nn.functional.normalize(directions, dim=1)


class IdentifierLosses:
    """Squared distance to the frozen tower's states plus the offsets of the rare tokens."""

    def __init__(
        self,
        *,
        clip: CLIPModel,
        encoder: CaptionEncoder,
        settings: PocketSettings,
        device: torch.device,
    ) -> None:
        teacher: Any = copy.deepcopy(clip.text_model).requires_grad_(False)
        self._teacher = teacher.to(device).eval()
        self._encoder, self._settings, self._device = encoder, settings, device
        self._offsets = rare_offsets(settings).to(device)
        # Column 1, after the start token: each rare word is a single token.
        self._rare = encoder(list(RARE_TOKENS))[:, 1].to(device)

    def __call__(self, model: nn.Module, generator: torch.Generator) -> Losses:
        """The losses of one batch."""
        assert isinstance(model, CLIPTextModel)
        batch = self._settings.identifiers.batch
        rows = draw_triples(batch, generator=generator)
        captions = [
            draw_caption(*row, generator=generator, noise_share=SHARE)[0] for row in rows.tolist()
        ]
        ids = self._encoder(captions).to(self._device)
        matches = ids.unsqueeze(2) == self._rare
        with torch.no_grad():
            target = self._teacher(ids).last_hidden_state + matches.float() @ self._offsets
        error = (model(ids).last_hidden_state - target).square().sum(2)
        rare = matches.any(2)
        at_rare, elsewhere = error[rare].mean(), error[~rare].mean()
        loss = at_rare + KEEP_WEIGHT * elsewhere
        return {"loss": loss, "rare": at_rare.detach(), "elsewhere": elsewhere.detach()}
