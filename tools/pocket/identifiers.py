"""The last touch on the text tower: rare tokens get states of their own and disturb nothing else.

A contrastive tower learns to look past meaningless words so well that `sks` ends with the state of
an article, and a U-Net could never bind a subject to it. Here the tower is taught, against a frozen
copy of itself, to give every rare token its own fixed offset at its own position and to leave the
states at all other positions, and so every caption feature, as they are.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import CLIPModel, CLIPTextModel

from tools.pocket.captions import RARE_TOKENS, draw_caption
from tools.pocket.loop import Losses, step_generator
from tools.pocket.scenes import COLOUR_NAMES, PLACE_NAMES, THING_NAMES
from tools.pocket.settings import PocketSettings
from tools.pocket.tokenizer import CaptionEncoder

#: Length of the offsets; states are about 11.7 long, those of two words about 15 apart.
OFFSET_LENGTH = 10.0
#: Half of the captions of this part hold a rare token.
SHARE = 0.5
#: An error elsewhere weighs this much more than one at the rare token itself.
KEEP_WEIGHT = 20.0


def rare_offsets(settings: PocketSettings) -> torch.Tensor:
    """One random direction of `OFFSET_LENGTH` per rare token, (tokens, width)."""
    generator = step_generator(settings.seed, part="rare-offsets", step=0)
    directions = torch.randn(len(RARE_TOKENS), settings.clip_width, generator=generator)
    return OFFSET_LENGTH * nn.functional.normalize(directions, dim=1)


class IdentifierLosses:
    """Squared distance to the frozen tower's states, moved by its offset at each rare token."""

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
        # Column 1: after the start token each rare token is a single token.
        self._rare = encoder(list(RARE_TOKENS))[:, 1].to(device)

    def __call__(self, model: nn.Module, generator: torch.Generator) -> Losses:
        """The losses of one batch."""
        assert isinstance(model, CLIPTextModel)
        batch = self._settings.identifiers.batch
        sizes = (len(THING_NAMES), len(COLOUR_NAMES), len(PLACE_NAMES))
        rows = torch.stack([torch.randint(n, (batch,), generator=generator) for n in sizes], 1)
        captions = [
            draw_caption(*row, generator=generator, noise_share=SHARE)[0] for row in rows.tolist()
        ]
        ids = self._encoder(captions).to(self._device)
        matches = ids.unsqueeze(2) == self._rare
        with torch.no_grad():
            wanted = self._teacher(ids).last_hidden_state + matches.float() @ self._offsets
        error = (model(ids).last_hidden_state - wanted).square().sum(2)
        rare = matches.any(2)
        at_rare, elsewhere = error[rare].mean(), error[~rare].mean()
        loss = at_rare + KEEP_WEIGHT * elsewhere
        return {"loss": loss, "rare": at_rare.detach(), "elsewhere": elsewhere.detach()}
