"""Describes images with BLIP (Li et al. 2022), a captioner that transformers loads."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BlipForConditionalGeneration

from dreambooth_core.errors import SettingsError
from dreambooth_core.models import source
from dreambooth_core.models.tensors import LOADING_ERRORS, eval_mode

DEFAULT = "Salesforce/blip-image-captioning-large"
"""The smaller `-base` is published with pickled weights only, which are never loaded."""

_BEAMS = 3
_MAX_NEW_TOKENS = 30
_PART_OF_A_WORD = "##"


class Captioner:
    """A BLIP model with its image processor and tokenizer."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        """Load the model of a folder. Raises SettingsError unless it is a whole BLIP captioner."""
        kind = source.read_json_file(folder / "config.json", what="a captioner").get("model_type")
        if kind != "blip":
            raise SettingsError(
                f"{folder} is not a captioner", got=f"a model of type {kind!r}", allowed="'blip'"
            )
        source.require_weights(folder, None)
        load = functools.partial(_load, folder=folder)
        model, info = load(
            BlipForConditionalGeneration,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            raise SettingsError(
                f"the weights of {folder} are not complete, so part of the captioner is random",
                got=f"no {', '.join(sorted(info['missing_keys'])[:3])}",
            )
        self._model = model.to(device)
        self._processor = load(AutoImageProcessor, backend="pil", trust_remote_code=False)
        self._tokenizer = load(AutoTokenizer, trust_remote_code=False)

    def complete(self, image: Image.Image, beginning: str) -> str:
        """The words with which the model goes on after `beginning`, when it sees the image."""
        pixels = self._processor(images=[image.convert("RGB")], return_tensors="pt")
        ids_BL = self._tokenizer(beginning, return_tensors="pt")["input_ids"]
        device = self._model.device
        with eval_mode(self._model), torch.inference_mode():
            written_BL = self._model.generate(
                pixel_values=pixels["pixel_values"].to(device),
                input_ids=ids_BL.clone().to(device),
                attention_mask=torch.ones_like(ids_BL).to(device),
                num_beams=_BEAMS,
                do_sample=False,
                max_new_tokens=_MAX_NEW_TOKENS,
            )
        # The tokenizer's last token marks an end, which BLIP drops before it writes.
        own = written_BL[0, ids_BL.shape[1] - 1 :].cpu()
        return tidy(self._tokenizer.decode(own, skip_special_tokens=True))


def tidy(text: str) -> str:
    """A completion without the end of the noun's own word (a plural) and outer punctuation."""
    words = text.split()
    if words and words[0].startswith(_PART_OF_A_WORD):
        words = words[1:]
    return " ".join(words).strip(" .,;:-")


def _load(cls: Any, *, folder: Path, **options: Any) -> Any:
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except LOADING_ERRORS as error:
        raise source.unusable(folder, error) from error
