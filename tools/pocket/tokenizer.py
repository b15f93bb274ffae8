"""pocket-clip's tokenizer: byte-pair encoding with one token per word of the vocabulary."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from tools.pocket.captions import vocabulary

START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(*, max_length: int) -> CLIPTokenizer:
    """A CLIPTokenizer that spells words outside the vocabulary in bytes, without unknown tokens.

    `learn_merges` makes the ids the same at every call; the trainer of the `tokenizers` library
    breaks ties in an order that changes from call to call.
    """
    merges = learn_merges(vocabulary())
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [left + right for left, right in merges]
    tokens += [START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    untyped: Any = merges
    return CLIPTokenizer(
        vocab=vocab, merges=untyped, model_max_length=max_length, clean_up_tokenization_spaces=False
    )


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, then alphabetically, until each word is one token."""
    for word in words:
        assert word == "".join(filter(str.islower, word)), f"{word!r} would be split"
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for pieces in spelled for pair in itertools.pairwise(pieces))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelled = [_merged(pieces, pair=best) for pieces in spelled]


def _merged(pieces: list[str], *, pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


class CaptionEncoder:
    """Token ids of captions, cached per caption: (B, max_length) int64, padded with END."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer
        self._rows: dict[str, torch.Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Token ids of the captions."""
        new = [text for text in dict.fromkeys(captions) if text not in self._rows]
        if new:
            ids = self._tokenizer(
                new,
                padding="max_length",
                truncation=True,
                max_length=self._tokenizer.model_max_length,
                return_tensors="pt",
            )["input_ids"]
            self._rows.update(zip(new, ids, strict=True))
        return torch.stack([self._rows[text] for text in captions])
