"""Prompt embeddings as in the pipelines: token ids, hidden states and pooled embeddings.

A single text encoder contributes its last hidden state (Stable Diffusion 1 and 2). Two contribute
the concatenated states before their last layers, and the second a pooled embedding (SDXL).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CLIPTokenizer

from dreambooth_core.errors import DataError, SettingsError
from dreambooth_core.models.prompts import check_prompts

# B prompts, E text encoders, L tokens, D text width, P width of a pooled embedding


class TextEmbedding(NamedTuple):
    """The embeddings of some prompts; `pooled_BP` is None with a single text encoder."""

    text_BLD: torch.Tensor
    pooled_BP: torch.Tensor | None


def token_ids(prompt: str, tokenizers: Sequence[CLIPTokenizer]) -> torch.Tensor:
    """A prompt's token ids for each text encoder, [E, L], padded to the tokenizers' length.

    Raises DataError for a prompt that is too long: a caption may be one.
    """
    try:
        check_prompts({"the prompt": prompt}, tokenizers)
    except SettingsError as error:
        raise DataError(str(error)) from None
    return torch.cat([_ids_of(prompt, tokenizer) for tokenizer in tokenizers])


def _ids_of(prompt: str, tokenizer: CLIPTokenizer) -> torch.Tensor:
    limit = tokenizer.model_max_length
    return tokenizer(prompt, padding="max_length", max_length=limit, return_tensors="pt").input_ids


def attention_mask(ids_BL: torch.Tensor) -> torch.Tensor:
    """1 up to a prompt's first end token, which has the highest id of the vocabulary, then 0."""
    end_B = ids_BL.argmax(dim=-1)
    places_L = torch.arange(ids_BL.shape[-1], device=ids_BL.device)
    return (places_L <= end_B[:, None]).long()


def encode(
    text_encoders: Sequence[nn.Module], ids_EBL: torch.Tensor, *, masked: bool = False
) -> TextEmbedding:
    """Embed prompts from token ids, like the pipelines without an attention mask.

    `masked` hides the padding from a single text encoder; sampling must then do the same.
    """
    if len(text_encoders) == 1:
        mask_BL = attention_mask(ids_EBL[0]) if masked else None
        last: Any = text_encoders[0](ids_EBL[0], attention_mask=mask_BL)
        return TextEmbedding(last.last_hidden_state, pooled_BP=None)
    outputs: list[Any] = [
        encoder(ids_BL, output_hidden_states=True)
        for encoder, ids_BL in zip(text_encoders, ids_EBL, strict=True)
    ]
    hidden = [output.hidden_states[-2] for output in outputs]
    return TextEmbedding(torch.cat(hidden, dim=-1), pooled_BP=outputs[-1].text_embeds)


def unread_parameters(text_encoders: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The parameters that no embedding depends on, so they get no gradient.

    With two encoders, the first is read before its last layer and is not pooled.
    """
    if len(text_encoders) < 2:
        return []
    first: Any = text_encoders[0]
    stack = getattr(first, "text_model", first)
    return [*stack.encoder.layers[-1].parameters(), *stack.final_layer_norm.parameters()]
