"""The latent cache of a script's run: all is encoded once, in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from dreambooth_core import files
from dreambooth_core.data import cache
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, source
from dreambooth_core.records import BaseModelIdentity, LatentCache, Manifest
from dreambooth_core.scripts import class_images, photos
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.scripts.signals import Stop

CACHE = "cache"

_MOMENTS = "moments"


def build_latents(
    plan: ScriptSettings,
    *,
    instance: Manifest,
    class_: Manifest | None,
    device: torch.device,
    stop: Stop,
) -> LatentCache:
    """Encode images and prompts with the frozen networks, and let go of these."""
    base, root = plan.base_model, Path.cwd()
    sets = [
        cache.ImageSet(
            manifest=instance,
            folder=plan.state_dir / photos.FOLDER,
            prompt=plan.flags.instance_prompt,
        )
    ]
    if class_ is not None:
        sets.append(
            cache.ImageSet(
                manifest=class_,
                folder=plan.state_dir / class_images.FOLDER,
                prompt=plan.class_prompt,
            )
        )
    encoders = cache.Encoders(
        vae=load.load_component("vae", base, root, device=device),
        text_encoders=tuple(load.load_text_encoders(base, root, device=device).values()),
        tokenizers=_tokenizers(plan),
        identity=BaseModelIdentity(
            name=base.pretrained_model_name_or_path, revision=base.revision, sha256=""
        ),
        masks_text=masks_text(plan),
    )
    _require_places(encoders)
    with stop.watched(), files.atomic_dir(plan.state_dir / CACHE) as out:
        record = cache.build_cache(
            sets,
            encoders=encoders,
            settings=plan.data,
            content_store=plan.state_dir / _MOMENTS,
            out=out,
            fingerprint="",
            should_stop=stop,
        )
    del encoders
    load.free_memory(device)
    return record


def _require_places(encoders: cache.Encoders) -> None:
    """Raise SettingsError where a tokenizer gives more tokens than its text encoder can read."""
    for tokenizer, encoder in zip(encoders.tokenizers, encoders.text_encoders, strict=True):
        config: Any = encoder.config
        if tokenizer.model_max_length > config.max_position_embeddings:
            raise SettingsError(
                "--tokenizer_max_length: the text encoder cannot read so many tokens",
                got=str(tokenizer.model_max_length),
                allowed=f"up to {config.max_position_embeddings}",
            )


def masks_text(plan: ScriptSettings) -> bool:
    """Whether the text encoder is given the attention mask."""
    return bool(getattr(plan.flags, "text_encoder_use_attention_mask", False))


def _tokenizers(plan: ScriptSettings) -> tuple[CLIPTokenizer, ...]:
    """The base model's, or the one of its own that a flag names; cut to the length of a flag."""
    root = Path.cwd()
    name = getattr(plan.flags, "tokenizer_name", None)
    if name is None:
        tokenizers = load.load_tokenizers(plan.base_model, root)
    else:
        found = source.find_model(
            name, root, revision=plan.flags.revision, patterns=source.MODEL_PATTERNS
        )
        tokenizers = (load.load_tokenizer(found.folder),)
    length = getattr(plan.flags, "tokenizer_max_length", None)
    for tokenizer in tokenizers:
        tokenizer.model_max_length = length or tokenizer.model_max_length
    return tokenizers
