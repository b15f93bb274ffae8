"""The networks of a training as one module: the U-Net and the trained text encoders.

DDP, DeepSpeed and FSDP each wrap a single module with one optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dreambooth_core.models.text import TextEmbedding, encode

# B rows, C latent channels, H W latent height and width, E text encoders, L tokens, D text width


@dataclass(frozen=True)
class TrainBatch:
    """Rows for some global sample positions, on the CPU, in fp32.

    Every position has one instance row and, with prior preservation, one class row, in any order.
    The training draws noise and timesteps itself, from (seed, role, position).
    """

    latents_BCHW: torch.Tensor
    """Scaled latents z_0: a sample of the VAE's posterior times its scaling factor."""
    text_BLD: torch.Tensor
    """Text embeddings of each row's prompt, by the base model's text encoder."""
    is_class_B: tuple[bool, ...]
    """Whether the row is of the role "class"."""
    position_B: tuple[int, ...]
    """The global sample position of each row."""
    image_B: tuple[str, ...]
    """The name of each row's image, for messages."""
    pooled_BP: torch.Tensor | None = None
    """Pooled text embeddings, if the base model has them (SDXL)."""
    ids_EBL: torch.Tensor | None = None
    """Token ids of each row's prompt for each text encoder, for training these."""
    time_ids_B6: torch.Tensor | None = None
    """Original height and width, top and left of the crop, height and width of the view."""
    loss_weights_B1HW: torch.Tensor | None = None
    """The weight of each position in its row's error, if photos have masks."""


RowsAt = Callable[[Sequence[int]], TrainBatch]
"""The rows at some global sample positions: a pure function of (seed, position)."""


# B rows, C latent channels, H W latent height and width, E text encoders, L tokens, D text width,
# P width of a pooled embedding


class Denoiser(nn.Module):
    """Predicts from noisy latents and a text. Parameters are named `<part>.<name in the part>`.

    The parts are `unet` and the trained text encoders, `text_encoder` and `text_encoder_2`. The
    rows carry the embeddings of frozen text encoders.
    """

    def __init__(
        self, unet: UNet2DConditionModel, text_encoders: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.unet = unet
        self._takes_time_ids = unet.config["addition_embed_type"] == "text_time"
        self.text_encoder_names = tuple(text_encoders or ())
        self.masks_text = False
        """Whether trained text encoders take the attention mask."""
        for name, text_encoder in (text_encoders or {}).items():
            self.add_module(name, text_encoder)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The U-Net and the text encoders by name, in a fixed order."""
        return {name: self.get_submodule(name) for name in ("unet", *self.text_encoder_names)}

    @property
    def text_encoders(self) -> list[nn.Module]:
        """The trained text encoders, in the pipeline's order."""
        return [self.get_submodule(name) for name in self.text_encoder_names]

    def forward(
        self,
        noisy_BCHW: torch.Tensor,
        timestep_B: torch.Tensor,
        *,
        text_BLD: torch.Tensor,
        pooled_BP: torch.Tensor | None = None,
        ids_EBL: torch.Tensor | None = None,
        time_ids_B6: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The U-Net's prediction, [B, C, H, W].

        The text is `text_BLD` and `pooled_BP`, or `ids_EBL` if text encoders are trained. Only
        SDXL's U-Net takes pooled embeddings and time ids.
        """
        text = TextEmbedding(text_BLD, pooled_BP)
        if self.text_encoder_names:
            assert ids_EBL is not None, "text encoders are trained, but the rows lack token ids"
            text = encode(self.text_encoders, ids_EBL, masked=self.masks_text)
        prediction: Any = self.unet(
            noisy_BCHW,
            timestep_B,
            encoder_hidden_states=text.text_BLD,
            added_cond_kwargs=self._conditions(text, time_ids_B6),
            return_dict=False,
        )
        return prediction[0]

    def _conditions(
        self, text: TextEmbedding, time_ids_B6: torch.Tensor | None
    ) -> dict[str, torch.Tensor] | None:
        """The U-Net's added conditioning, if its config asks for it."""
        if self._takes_time_ids:
            assert text.pooled_BP is not None and time_ids_B6 is not None  # noqa: PT018
            return {"text_embeds": text.pooled_BP, "time_ids": time_ids_B6}
        return None
