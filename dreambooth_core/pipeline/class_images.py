"""The class-images stage: samples of the ordinary class by the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dreambooth_core import files
from dreambooth_core.blocks import Sampler, complete_block, once
from dreambooth_core.config import PriorSettings
from dreambooth_core.data import class_images, gate
from dreambooth_core.models import load, sampling
from dreambooth_core.models.families import Pipeline, native_side
from dreambooth_core.pipeline import prompt_checks
from dreambooth_core.pipeline.common import (
    RunContext,
    StageContext,
    base_identity,
    machine,
    publishing,
)
from dreambooth_core.records import Manifest


def run(context: StageContext) -> Manifest:
    """Publish exactly `num_class_images` images; an empty set without prior preservation."""
    settings, prior = context.settings, context.settings.prior
    with publishing(context.places, "class-images") as out:
        if prior is None:
            manifest = Manifest(role="class", fingerprint=files.digest_of(None), images=())
            manifest.write(out)
            return manifest
        own = class_set(context, prior)
        return class_images.make_class_images(
            state=own.folder,
            out=out,
            key=own.key,
            fingerprint=own.key,
            num=own.num,
            block_size=own.block_size,
            sampler=own.sampler,
            lanes=context.sampling_lanes(load.pick_device(settings.compute).type),
            warnings=gate.class_set_warnings(prior),
            should_stop=context.should_stop,
            progress=context.progress,
        )


@dataclass(frozen=True)
class ClassSet:
    """The class images of a subject's settings in the store, and how to sample them."""

    folder: Path
    key: str
    num: int
    block_size: int
    sampler: Sampler

    @property
    def firsts(self) -> range:
        """The first index of each block."""
        return range(0, self.num, self.block_size)

    def complete(self, first: int) -> None:
        """Sample a block, unless the store has it."""
        block = range(first, first + self.block_size)
        complete_block(self.folder, self.key, block, sampler=self.sampler)


def class_set(context: StageContext, prior: PriorSettings) -> ClassSet:
    """The set of the context's settings. Downloads the base model if it must.

    Raises SettingsError for a prompt that the base model cannot draw.
    """
    settings = context.settings
    key = set_key(
        context,
        prior,
        resolution=settings.data.resolution,
        compute=[*machine(settings.compute), settings.versions.class_images],
    )
    prompt_checks.check_drawn(settings, context.places.root)
    return ClassSet(
        folder=context.places.store_dir("class-images", key),
        key=key,
        num=prior.num_class_images,
        block_size=prior.sample_batch_size,
        sampler=make_sampler(context, prior, resolution=settings.data.resolution),
    )


def set_key(
    context: RunContext, prior: PriorSettings, *, resolution: int, compute: Sequence[str | int]
) -> str:
    """The key of the set, which subjects of one class share in a store."""
    settings = context.settings
    return class_images.class_image_key(
        base_identity(context),
        class_prompt=settings.subject.class_prompt,
        prior=prior,
        resolution=resolution,
        sampler=sampling.solver_name(
            prior.solver, own=load.sampler_name(settings.base_model, context.places.root)
        ),
        compute=compute,
    )


def make_sampler(
    context: RunContext,
    prior: PriorSettings,
    *,
    resolution: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Sampler:
    """A sampler by the base model, which is loaded when the first image is missing.

    `resolution` defaults to that of the base model, `device` to that of the settings.
    """
    settings = context.settings

    def open_pipeline() -> Pipeline:
        load.configure_torch(settings.compute)
        pipe = load.load_pipeline(
            settings.base_model,
            context.places.root,
            device=device or load.pick_device(settings.compute),
            dtype=dtype,
        )
        sampling.give_solver(pipe, prior.solver)
        return pipe

    pipeline = once(open_pipeline)

    def sample(indices: Sequence[int]) -> list[Image.Image]:
        return sampling.sample(
            pipeline(),
            prompts=[settings.subject.class_prompt] * len(indices),
            seeds=[class_images.class_seed(prior.seed, index) for index in indices],
            steps=prior.num_inference_steps,
            guidance=prior.guidance_scale,
            resolution=resolution or native_side(pipeline()),
            batch_size=prior.sample_batch_size,
            should_stop=context.should_stop,
        )

    return sample
