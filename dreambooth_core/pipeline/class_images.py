"""The class-images stage: what the base model thinks the class looks like."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from PIL import Image

from dreambooth_core import files
from dreambooth_core.blocks import Sampler
from dreambooth_core.config import PriorSettings
from dreambooth_core.data import class_images, gate
from dreambooth_core.models import load, sampling
from dreambooth_core.models.families import Pipeline
from dreambooth_core.pipeline.common import StageContext, base_identity, machine, publishing
from dreambooth_core.records import Manifest


def run(context: StageContext) -> Manifest:
    """Publish exactly `num_class_images` images; an empty set without prior preservation."""
    view = context.settings
    with publishing(context.places, "class-images") as out:
        if view.prior is None:
            manifest = Manifest(role="class", fingerprint=files.digest_of(None), images=())
            manifest.write(out)
            return manifest
        key = _key(context, view.prior)
        return class_images.make_class_images(
            state=context.places.store_dir("class-images", key),
            out=out,
            key=key,
            fingerprint=key,
            num=view.prior.num_class_images,
            block_size=view.prior.sample_batch_size,
            sampler=_sampler(context, view.prior),
            warnings=gate.class_set_warnings(view.prior),
            should_stop=context.should_stop,
            progress=context.progress,
        )


def _key(context: StageContext, prior: PriorSettings) -> str:
    """The key of the set in the store, which subjects of one class share."""
    view = context.settings
    return class_images.class_image_key(
        base_identity(context),
        class_prompt=view.subject.class_prompt,
        prior=prior,
        resolution=view.data.resolution,
        sampler=sampling.solver_name(
            prior.solver, own=load.sampler_name(view.base_model, context.places.root)
        ),
        compute=[*machine(view), view.versions.class_images],
    )


def _sampler(context: StageContext, prior: PriorSettings) -> Sampler:
    """A sampler by the base model, which is loaded when the first image is missing."""
    view = context.settings

    @functools.cache
    def pipeline() -> Pipeline:
        load.configure_torch(view.compute)
        pipe = load.load_pipeline(
            view.base_model, context.places.root, device=load.pick_device(view.compute)
        )
        sampling.give_solver(pipe, prior.solver)
        return pipe

    def draw(indices: Sequence[int]) -> list[Image.Image]:
        return sampling.sample(
            pipeline(),
            prompts=[view.subject.class_prompt] * len(indices),
            seeds=[class_images.class_seed(prior.seed, index) for index in indices],
            steps=prior.num_inference_steps,
            guidance=prior.guidance_scale,
            resolution=view.data.resolution,
            batch_size=prior.sample_batch_size,
            should_stop=context.should_stop,
        )

    return draw
