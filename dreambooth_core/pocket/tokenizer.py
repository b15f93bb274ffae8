"""pocket-clip's tokenizer: byte-pair encoding in which every word of the world is one token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from dreambooth_core.pocket.captions import vocabulary

START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(*, max_length: int) -> CLIPTokenizer:
    """An ordinary CLIPTokenizer; words outside the vocabulary fall into bytes, none is unknown."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, show_progress=False, end_of_word_suffix="</w>",
        special_tokens=[],
    )  # fmt: skip
    for word in vocabulary():
        assert word == "".join(filter(str.islower, word)), f"{word!r} would be split"
    bpe.train_from_iterator(([word] for word in vocabulary()), trainer)
    merges: Any = [tuple(pair) for pair in _merges(bpe)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += list(dict.fromkeys(left + right for left, right in merges))
    tokens += [START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, model_max_length=max_length, clean_up_tokenization_spaces=False
    )


def _merges(bpe: Tokenizer) -> Iterable[Sequence[str]]:
    for pair in json.loads(bpe.to_str())["model"]["merges"]:
        yield pair.split(" ") if isinstance(pair, str) else pair


class CaptionEncoder:
    """Token ids of captions, remembered per caption: (B, max_length) int64, padded with END."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer
        self._rows: dict[str, torch.Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """The ids of the captions."""
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
