"""The cache stage: every image through the VAE and every prompt through the text encoder, once."""

from __future__ import annotations

from dreambooth_core.data import cache, captions, duplicates
from dreambooth_core.models import load
from dreambooth_core.pipeline.common import (
    StageContext,
    base_identity,
    fingerprint,
    machine,
    publishing,
)
from dreambooth_core.pipeline.validate import images_digest
from dreambooth_core.records import LatentCache, Manifest


def run(context: StageContext) -> LatentCache:
    """Publish the latent cache of the instance and the class images."""
    view, places = context.settings, context.places
    instance_dir = places.stage_dir("validate")
    class_dir = places.stage_dir("class-images")
    instance, class_ = Manifest.read(instance_dir), Manifest.read(class_dir)
    load.configure_torch(view.compute)
    device, identity = load.pick_device(view.compute), base_identity(context)
    encoders = cache.Encoders(
        vae=load.load_component("vae", view.base_model, places.root, device=device),
        text_encoders=tuple(
            load.load_text_encoders(view.base_model, places.root, device=device).values()
        ),
        tokenizers=load.load_tokenizers(view.base_model, places.root),
        identity=identity,
    )
    own = fingerprint(
        view,
        "cache",
        {
            "base_model": identity.sha256,
            "machine": machine(view),
            "instance": images_digest(instance),
            "class": images_digest(class_),
            "captions": [image.caption for image in instance.images],
        },
    )
    words = view.subject
    with publishing(context.places, "cache") as out:
        return cache.build_cache(
            [
                cache.ImageSet(
                    manifest=instance, folder=instance_dir, prompt=words.instance_prompt
                ),
                cache.ImageSet(manifest=class_, folder=class_dir, prompt=words.class_prompt),
            ],
            encoders=encoders,
            settings=view.data,
            content_store=places.store / "cache",
            out=out,
            fingerprint=own,
            warnings=(
                *_mix_ups(context, instance, class_),
                *captions.without_identifier(instance.images, words.identifier),
            ),
            should_stop=context.should_stop,
            progress=context.progress,
        )


def _mix_ups(context: StageContext, instance: Manifest, class_: Manifest) -> tuple[str, ...]:
    """Warnings for instance photos that are also among the class images."""
    sets = [
        duplicates.read_hashes(
            {image.file: context.places.stage_dir(stage) / image.file for image in manifest.images}
        )
        for stage, manifest in (("validate", instance), ("class-images", class_))
    ]  # fmt: skip
    return duplicates.also_among(*sets, distance=context.settings.data.near_duplicate_distance)
