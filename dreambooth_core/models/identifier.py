"""Whether the tokenizers of a base model keep an identifier in one piece. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import CLIPTokenizer

from dreambooth_core.config import BaseModelSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models.source import local_folder

_FOLDERS = ("tokenizer", "tokenizer_2")
_END_OF_WORD = "</w>"


def split_identifier(identifier: str, tokenizers: Iterable[CLIPTokenizer]) -> tuple[str, ...]:
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


def tokenizers_on_disk(settings: BaseModelSettings, root: Path) -> list[CLIPTokenizer]:
    """The base model's tokenizers, without a download; none if they are not on this machine."""
    try:
        folder = local_folder(
            settings.pretrained_model_name_or_path, root, revision=settings.revision
        ) or _cached(settings)
        found = [folder / name for name in _FOLDERS if folder and (folder / name).is_dir()]
        return [CLIPTokenizer.from_pretrained(str(path)) for path in found]
    except (SettingsError, OSError, ValueError):
        return []  # the run explains what is wrong with the base model


def _cached(settings: BaseModelSettings) -> Path | None:
    """The folder of a hub id in the local hub cache."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(
        settings.pretrained_model_name_or_path, "model_index.json", revision=settings.revision
    )
    return Path(index).parent if isinstance(index, str) else None
