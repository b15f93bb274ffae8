"""Whether the tokenizers of a base model keep an identifier in one piece. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dreambooth_core.config import BaseModelSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import prompts, source
from dreambooth_core.models.prompts import SavedTokenizer

_END_OF_WORD = "</w>"


def split_identifier(identifier: str, tokenizers: Iterable[Any]) -> tuple[str, ...]:
    """A warning if the identifier is more than one token; it is the same for each tokenizer."""
    for tokenizer in tokenizers:
        pieces = [str(piece).removesuffix(_END_OF_WORD) for piece in tokenizer.tokenize(identifier)]
        if len(pieces) > 1:
            return (
                f"the text encoder reads the identifier {identifier!r} in {len(pieces)} pieces "
                f"({' '.join(pieces)}), which also occur in other words: training changes those "
                "words too, and learns the subject more slowly; a word of one piece is sks",
            )
    return ()


def tokenizers_on_disk(settings: BaseModelSettings, root: Path) -> list[SavedTokenizer]:
    """The base model's tokenizers, without a download; none if they are not on this machine."""
    try:
        folder = source.folder_at_hand(settings, root)
        return [] if folder is None else prompts.saved_tokenizers_in(folder)
    except SettingsError:
        return []  # the run explains what is wrong with the base model
