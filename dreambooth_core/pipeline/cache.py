"""The cache stage: every image through the VAE and every prompt through the text encoder, once."""

from __future__ import annotations

import dataclasses

import torch

from dreambooth_core.data import cache, captions, duplicates
from dreambooth_core.data.cache import Encoders, ImageSet
from dreambooth_core.logs import logger
from dreambooth_core.models import load
from dreambooth_core.models.denoiser import Denoiser
from dreambooth_core.models.identifier import split_identifier
from dreambooth_core.models.subject_finder import SubjectFinder
from dreambooth_core.models.text import encode as encode_text
from dreambooth_core.models.text import token_ids
from dreambooth_core.pipeline.common import (
    RunContext,
    StageContext,
    base_identity,
    machine,
    publishing,
)
from dreambooth_core.pipeline.validate import images_digest
from dreambooth_core.records import BaseModelIdentity, LatentCache, Manifest


def run(context: StageContext) -> LatentCache:
    """Publish the latent cache of the instance and the class images."""
    instance, class_ = _read_manifests(context)
    load.configure_torch(context.settings.compute)
    encoders = load_encoders(context, base_identity(context))
    word = context.settings.subject.identifier
    warnings = (
        *_mix_ups(context, instance, class_),
        *captions.without_identifier(instance.images, word),
        *split_identifier(word, encoders.tokenizers),
    )
    for warning in warnings:
        logger.warning("%s", warning)
    return encode(context, encoders, warnings=warnings)


def encode(
    context: RunContext, encoders: Encoders, *, warnings: tuple[str, ...] = ()
) -> LatentCache:
    """Publish the latent cache that `encoders` give."""
    places, subject = context.places, context.settings.subject
    instance, class_ = _read_manifests(context)
    own = context.fingerprint(
        "cache",
        {
            "base_model": encoders.identity.sha256,
            "machine": machine(context.settings.compute),
            "instance": images_digest(instance),
            "class": images_digest(class_),
            "captions": [image.caption for image in instance.images],
            **_masks(instance),
        },
    )
    sets = [
        ImageSet(
            manifest=instance, folder=places.stage_dir("validate"), prompt=subject.instance_prompt
        ),
        ImageSet(
            manifest=class_, folder=places.stage_dir("class-images"), prompt=subject.class_prompt
        ),
    ]
    with publishing(places, "cache") as out:
        return cache.build_cache(
            sets,
            encoders=encoders,
            settings=context.settings.data,
            content_store=places.store / "cache",
            out=out,
            fingerprint=own,
            warnings=warnings,
            should_stop=context.should_stop,
            progress=context.progress,
        )


def _masks(manifest: Manifest) -> dict[str, list[str | None]]:
    """The masks of the photos, for the fingerprint; nothing without masks."""
    masks = [image.mask.sha256 if image.mask else None for image in manifest.images]
    return {"masks": masks} if any(masks) else {}


def load_encoders(context: RunContext, identity: BaseModelIdentity) -> Encoders:
    """The frozen networks of the base model that encode images and prompts."""
    settings, root = context.settings, context.places.root
    device = load.pick_device(settings.compute)
    text_encoders = load.load_text_encoders(settings.base_model, root, device=device)
    encoders = Encoders(
        vae=load.load_component("vae", settings.base_model, root, device=device),
        text_encoders=tuple(text_encoders.values()),
        tokenizers=load.load_tokenizers(settings.base_model, root),
        identity=identity,
    )
    if settings.data.masks != "auto":
        return encoders
    return dataclasses.replace(encoders, finder=load_finder(context, encoders))


def load_finder(context: RunContext, encoders: Encoders) -> SubjectFinder:
    """The base model's U-Net, to find the class in the photos."""
    base, root, device = context.settings.base_model, context.places.root, encoders.vae.device
    scheduler = load.load_component("scheduler", base, root)
    ids = [
        token_ids(text, encoders.tokenizers) for text in (context.settings.subject.class_prompt, "")
    ]
    with torch.inference_mode():
        text = encode_text(encoders.text_encoders, torch.stack(ids, dim=1).to(device))
    return SubjectFinder(
        denoiser=Denoiser(load.load_component("unet", base, root, device=device)),
        alpha_bar_T=scheduler.alphas_cumprod,
        latent_scale=float(encoders.vae.config["scaling_factor"]),
        text=text,
    )


def _read_manifests(context: RunContext) -> tuple[Manifest, Manifest]:
    """The manifests of the instance and the class images."""
    places = context.places
    return (
        Manifest.read(places.stage_dir("validate")),
        Manifest.read(places.stage_dir("class-images")),
    )


def _mix_ups(context: StageContext, instance: Manifest, class_: Manifest) -> tuple[str, ...]:
    """Warnings for instance photos that are also among the class images."""
    sets = [
        duplicates.read_hashes(
            {image.file: context.places.stage_dir(stage) / image.file for image in manifest.images}
        )
        for stage, manifest in (("validate", instance), ("class-images", class_))
    ]
    return duplicates.also_among(*sets, distance=context.settings.data.near_duplicate_distance)
