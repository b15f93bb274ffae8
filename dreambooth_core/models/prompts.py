"""Prompts that a text encoder cannot read whole: refused before anything is drawn. Torch-free.

The libraries cut such a prompt without a word, so the end of it would have no effect.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dreambooth_core.errors import Problem, SettingsError
from dreambooth_core.models import source

END_OF_WORD = "</w>"
"""What CLIP's vocabulary has at the end of a word's last token."""

_VOCABULARIES = ("tokenizer.json", "vocab.json")
TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
"""The folders of a pipeline's tokenizers, each with that of its text encoder."""
_SHOWN_WORDS = 4


def check_prompts(prompts: Mapping[str, str], tokenizers: Iterable[Any]) -> None:
    """Raise SettingsError with every prompt that is too long for one of the tokenizers.

    `prompts` maps what each prompt is for, such as "the class prompt", to its text.
    """
    own = tuple(tokenizers)
    texts = {what: _problem_of(what, prompt, own) for what, prompt in prompts.items()}
    if found := [Problem(text) for text in texts.values() if text]:
        raise SettingsError.of(found)


def _problem_of(what: str, prompt: str, tokenizers: Iterable[Any]) -> str | None:
    for tokenizer in tokenizers:
        limit: int = tokenizer.model_max_length
        encoded = tokenizer(prompt, return_offsets_mapping=True)
        num = len(encoded["input_ids"])
        if num > limit:
            # The last token that is kept marks the end, so the text is cut before it.
            lost = _words_from(prompt, encoded["offset_mapping"][limit - 1][0])
            return (
                f"{what} does not fit the text encoder; found: {num} tokens; allowed: {limit} "
                f"tokens, with the two that mark start and end; what to do: shorten {prompt!r}: "
                f"it would be cut before {lost!r}"
            )
    return None


def _words_from(prompt: str, place: int) -> str:
    """The first words that are cut off, from the start of the word at `place`."""
    start = prompt.rfind(" ", 0, place + 1) + 1
    words = prompt[start:].split()
    more = " ..." if len(words) > _SHOWN_WORDS else ""
    return " ".join(words[:_SHOWN_WORDS]) + more


def require_text(what: str, prompt: str) -> None:
    """Raise SettingsError for a prompt without a word, which would draw anything at all."""
    if not prompt.strip():
        raise SettingsError(
            f"{what} is empty: the images would show anything that the model has learnt",
            got=repr(prompt),
            hint='describe the image, such as "a photo of sks dog on the beach"',
        )


def tokenizers_in(pipeline: Path) -> list[Any]:
    """The tokenizers of a saved pipeline, each limited to what its text encoder can read."""
    return [limited(load_tokenizer(folder), most) for folder, most in _folders_in(pipeline)]


class SavedTokenizer:
    """Counts the tokens of prompts with a saved tokenizer.

    Loads a `tokenizer.json` without transformers, which takes a second to import. Raises
    SettingsError if the folder holds no tokenizer.
    """

    def __init__(self, folder: Path, positions: object) -> None:
        _require_vocabulary(folder)
        self.folder, self._positions = folder, positions

    @property
    def model_max_length(self) -> int:
        """The most tokens of a prompt."""
        return self._positions if isinstance(self._positions, int) else self._whole.model_max_length

    def __call__(self, prompt: str, **_: Any) -> Mapping[str, Any]:
        """The ids and the places in the text of a prompt's tokens, none cut."""
        if self._fast is None:
            return self._whole(prompt, return_offsets_mapping=True)
        encoded = self._fast.encode(prompt)
        return {"input_ids": encoded.ids, "offset_mapping": encoded.offsets}

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without those of start and end."""
        if self._fast is None:
            return self._whole.tokenize(text)
        return self._fast.encode(text, add_special_tokens=False).tokens

    def words(self) -> list[str]:
        """The whole words of the vocabulary, in its order: from frequent to rare."""
        known = (self._fast or self._whole).get_vocab()
        whole = [word for word in known if word.endswith(END_OF_WORD)]
        return [word.removesuffix(END_OF_WORD) for word in sorted(whole, key=known.__getitem__)]

    @functools.cached_property
    def _fast(self) -> Tokenizer | None:
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            return None
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise source.unusable(self.folder, error) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @functools.cached_property
    def _whole(self) -> Any:
        return limited(load_tokenizer(self.folder), self._positions)


def saved_tokenizers_in(pipeline: Path) -> list[SavedTokenizer]:
    """Like `tokenizers_in`, to count tokens only."""
    return [SavedTokenizer(folder, positions) for folder, positions in _folders_in(pipeline)]


def _folders_in(pipeline: Path) -> Iterator[tuple[Path, object]]:
    """The folders of a pipeline's tokenizers, each with the positions of its text encoder."""
    index = source.read_json_file(pipeline / "model_index.json", what="a saved pipeline")
    for name, encoder in TOKENIZERS.items():
        if index.get(name) not in (None, [None, None]):
            yield pipeline / name, _positions(pipeline / encoder)


def _positions(text_encoder: Path) -> object:
    config = source.read_json_file(text_encoder / "config.json", what="a text encoder")
    return config.get("max_position_embeddings")


def tokenizers_of(pipe: Any) -> list[Any]:
    """The tokenizers of a loaded pipeline, as `tokenizers_in` gives those of a saved one."""
    pairs = [(getattr(pipe, a, None), getattr(pipe, b, None)) for a, b in TOKENIZERS.items()]
    return [limited(t, e.config.max_position_embeddings) for t, e in pairs if t and e is not None]


def limited(tokenizer: Any, positions: object) -> Any:
    """The tokenizer with a limit of at most `positions` tokens; its files may state none."""
    if isinstance(positions, int):
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in a folder. Raises SettingsError."""
    from transformers import CLIPTokenizer

    _require_vocabulary(folder)
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise source.unusable(folder, error) from error


def _require_vocabulary(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise SettingsError(
            f"{folder} holds no tokenizer",
            got=source.describe_folder(folder),
            allowed=f"a folder with {' or '.join(_VOCABULARIES)}",
        )
