"""The cache stage: every image through the VAE and every prompt through the text encoder, once."""

from __future__ import annotations

from dreambooth_core.data import cache, captions, duplicates
from dreambooth_core.data.cache import Encoders, ImageSet
from dreambooth_core.models import load
from dreambooth_core.models.identifier import split_identifier
from dreambooth_core.pipeline.common import (
    RunContext,
    StageContext,
    base_identity,
    logger,
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


def load_encoders(context: RunContext, identity: BaseModelIdentity) -> Encoders:
    """The frozen networks of the base model that encode images and prompts."""
    settings, root = context.settings, context.places.root
    device = load.pick_device(settings.compute)
    text_encoders = load.load_text_encoders(settings.base_model, root, device=device)
    return Encoders(
        vae=load.load_component("vae", settings.base_model, root, device=device),
        text_encoders=tuple(text_encoders.values()),
        tokenizers=load.load_tokenizers(settings.base_model, root),
        identity=identity,
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
