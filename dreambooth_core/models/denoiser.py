"""The networks of a training as one module: the U-Net and the text encoders trained with it.

DDP, DeepSpeed and FSDP wrap one module each; two would be two engines with two optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

# B rows, C latent channels, H W latent height and width, E text encoders, L tokens, D text width,
# P width of a pooled embedding


class Denoiser(nn.Module):
    """Predicts from noisy latents and a text; parameters are called `<part>.<name in the part>`.

    The parts are `unet` and, when they are trained, `text_encoder` (and `text_encoder_2`). A text
    encoder that is not trained is no part: its embeddings come with the rows.
    """

    def __init__(
        self, unet: UNet2DConditionModel, text_encoders: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder_names = tuple(text_encoders or ())
        for name, text_encoder in (text_encoders or {}).items():
            self.add_module(name, text_encoder)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The U-Net and the text encoders by name, in a fixed order."""
        return {name: self.get_submodule(name) for name in ("unet", *self.text_encoder_names)}

    def forward(
        self,
        noisy_BCHW: torch.Tensor,
        timestep_B: torch.Tensor,
        *,
        text_BLD: torch.Tensor,
        ids_EBL: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the U-Net predicts, [B, C, H, W].

        The text is `text_BLD`, unless text encoders are trained: then they read `ids_EBL`.
        """
        if self.text_encoder_names:
            assert ids_EBL is not None, "a text encoder is trained, and the rows have no token ids"
            text_BLD = self._encode(ids_EBL)
        prediction: Any = self.unet(
            noisy_BCHW, timestep_B, encoder_hidden_states=text_BLD, return_dict=False
        )
        return prediction[0]

    def _encode(self, ids_EBL: torch.Tensor) -> torch.Tensor:
        """The last hidden states, as the pipeline embeds a prompt: without an attention mask."""
        (name,) = self.text_encoder_names
        encoded: Any = self.get_submodule(name)(ids_EBL[0])
        return encoded.last_hidden_state
