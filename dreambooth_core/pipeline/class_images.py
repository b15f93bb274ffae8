"""The class-images stage: what the base model thinks the class looks like."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from PIL import Image

from dreambooth_core import files
from dreambooth_core.blocks import Sampler
from dreambooth_core.config import PriorSettings, SubjectView
from dreambooth_core.data import class_images, gate
from dreambooth_core.models import load, sampling, solvers
from dreambooth_core.models.families import Pipeline
from dreambooth_core.pipeline.common import StageContext, base_identity, machine, publishing
from dreambooth_core.records import Manifest


def run(context: StageContext, subject: str) -> Manifest:
    """Publish exactly `num_class_images` images; an empty set without prior preservation."""
    view = context.view(subject)
    with publishing(context, subject, "class-images") as out:
        if view.prior is None:
            manifest = Manifest(role="class", fingerprint=files.digest_of(None), images=())
            manifest.write(out)
            return manifest
        key = _key(context, view, view.prior)
        return class_images.make_class_images(
            state=context.workspace.store_dir("class-images", key),
            out=out,
            key=key,
            fingerprint=key,
            num=view.prior.num_class_images,
            block_size=view.prior.sample_batch_size,
            sampler=_sampler(context, view, view.prior),
            warnings=gate.class_set_warnings(view.prior),
            should_stop=context.should_stop,
            progress=context.progress,
        )


def _key(context: StageContext, view: SubjectView, prior: PriorSettings) -> str:
    """Names the set: subjects of one class share it through the store."""
    return class_images.class_image_key(
        base_identity(context, view),
        class_prompt=view.subject.class_prompt,
        prior=prior,
        resolution=view.data.resolution,
        sampler=solvers.solver_name(
            prior.solver, own=load.sampler_name(view.base_model, context.workspace.root)
        ),
        compute=[*machine(view), view.versions.class_images],
    )


def _sampler(context: StageContext, view: SubjectView, prior: PriorSettings) -> Sampler:
    """Draws class images with the base model, which is loaded when the first is needed."""

    @functools.cache
    def pipeline() -> Pipeline:
        load.configure_torch(view.compute)
        pipe = load.load_pipeline(
            view.base_model, context.workspace.root, device=load.pick_device(view.compute)
        )
        solvers.give_solver(pipe, prior.solver)
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
