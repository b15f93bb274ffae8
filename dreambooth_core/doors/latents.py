"""The latent cache of a script's run: all is encoded once, in the run's folder."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from dreambooth_core import files
from dreambooth_core.data import cache
from dreambooth_core.doors import class_images, photos
from dreambooth_core.doors.plan import Plan
from dreambooth_core.models import load
from dreambooth_core.ports import StopSignal
from dreambooth_core.records import BaseModelIdentity, LatentCache, Manifest

CACHE = "cache"

_MOMENTS = "moments"


def build_latents(
    plan: Plan,
    *,
    instance: Manifest,
    class_: Manifest | None,
    device: torch.device,
    should_stop: StopSignal,
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
        text_encoder=load.load_component("text_encoder", base, root, device=device),
        tokenizer=load.load_component("tokenizer", base, root),
        identity=BaseModelIdentity(
            name=base.pretrained_model_name_or_path, revision=base.revision, sha256=""
        ),
    )
    with files.atomic_dir(plan.state_dir / CACHE) as out:
        record = cache.build_cache(
            sets,
            encoders=encoders,
            settings=plan.data,
            content_store=plan.state_dir / _MOMENTS,
            out=out,
            fingerprint="",
            should_stop=should_stop,
        )
    del encoders
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return record
