"""Whether the tokenizers of a base model keep an identifier in one piece. Imports no torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dreambooth_core.config import BaseModelSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import prompts, source
from dreambooth_core.models.prompts import SavedTokenizer

_RARE = re.compile(r"[a-z]{3}")


def split_identifier(identifier: str, tokenizers: Iterable[Any]) -> tuple[str, ...]:
    """A warning if the identifier is more than one token; it is the same for each tokenizer."""
    for tokenizer in tokenizers:
        pieces = pieces_of(identifier, tokenizer)
        if len(pieces) > 1:
            return (
                f"the text encoder reads the identifier {identifier!r} in {len(pieces)} pieces "
                f"({' '.join(pieces)}), which also occur in other words: training changes those "
                "words too, and learns the subject more slowly; a word of one piece is sks",
            )
    return ()


def pieces_of(word: str, tokenizer: Any) -> list[str]:
    """The tokens that a tokenizer makes of a word, as text."""
    return [str(piece).removesuffix(prompts.END_OF_WORD) for piece in tokenizer.tokenize(word)]


def rare_words(tokenizers: Iterable[SavedTokenizer], *, limit: int) -> list[str]:
    """Rare words of three letters that every tokenizer keeps in one piece, `sks` first.

    A vocabulary lists its tokens from frequent to rare.
    """
    known = list(tokenizers)
    if not known:
        return []
    words = ["sks", *reversed([w for w in known[0].words() if _RARE.fullmatch(w)])]
    whole = (w for w in words if all(len(pieces_of(w, each)) == 1 for each in known))
    return list(itertools.islice(dict.fromkeys(whole), limit))


def tokenizers_on_disk(settings: BaseModelSettings, root: Path) -> list[SavedTokenizer]:
    """The base model's tokenizers, without a download; none if they are not on this machine."""
    try:
        folder = source.folder_at_hand(settings, root)
        return [] if folder is None else prompts.saved_tokenizers_in(folder)
    except SettingsError:
        return []  # the run explains what is wrong with the base model
