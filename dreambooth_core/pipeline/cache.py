"""The cache stage: every image through the VAE and every prompt through the text encoder, once."""

from __future__ import annotations

from dreambooth_core.config import SubjectView
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


def run(context: StageContext, subject: str) -> LatentCache:
    """Publish the latent cache of the instance and the class images."""
    view, workspace = context.view(subject), context.workspace
    instance_dir = workspace.stage_dir(subject, "validate")
    class_dir = workspace.stage_dir(subject, "class-images")
    instance, class_ = Manifest.read(instance_dir), Manifest.read(class_dir)
    load.configure_torch(view.compute)
    device, identity = load.pick_device(view.compute), base_identity(context, view)
    encoders = cache.Encoders(
        vae=load.load_component("vae", view.base_model, workspace.root, device=device),
        text_encoders=tuple(
            load.load_text_encoders(view.base_model, workspace.root, device=device).values()
        ),
        tokenizers=load.load_tokenizers(view.base_model, workspace.root),
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
    with publishing(context, subject, "cache") as out:
        return cache.build_cache(
            [
                cache.ImageSet(
                    manifest=instance, folder=instance_dir, prompt=words.instance_prompt
                ),
                cache.ImageSet(manifest=class_, folder=class_dir, prompt=words.class_prompt),
            ],
            encoders=encoders,
            settings=view.data,
            content_store=workspace.state / "cache",
            out=out,
            fingerprint=own,
            warnings=(
                *_mix_ups(context, view, instance, class_),
                *captions.without_identifier(instance.images, words.identifier),
            ),
            should_stop=context.should_stop,
            progress=context.progress,
        )


def _mix_ups(
    context: StageContext, view: SubjectView, instance: Manifest, class_: Manifest
) -> tuple[str, ...]:
    """Warnings for instance photos that also stand among the class images."""
    sets = [
        duplicates.read_likenesses(
            {image.file: context.workspace.stage_dir(view.name, stage) / image.file
             for image in manifest.images}
        )
        for stage, manifest in (("validate", instance), ("class-images", class_))
    ]  # fmt: skip
    return duplicates.also_among(*sets, distance=view.data.near_duplicate_distance)
