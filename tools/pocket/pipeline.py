"""The trained parts put together as an ordinary StableDiffusionPipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from tools.pocket.loop import step_generator
from tools.pocket.pretrain import Workshop, encoded_latents
from tools.pocket.unet import SCHEDULE

SAMPLE_STEPS = 25
GUIDANCE = 3.0


def make_sampler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (2M) on the training schedule: good pictures in 25 steps or fewer."""
    return DPMSolverMultistepScheduler(
        **SCHEDULE,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )


def build_pipeline(shop: Workshop) -> StableDiffusionPipeline:
    """pocket-sd as its parts stand in the state folder."""
    vae, clip, unet = shop.trained("vae"), shop.clip(), shop.trained("unet")
    assert isinstance(vae, AutoencoderKL)
    assert isinstance(unet, UNet2DConditionModel)
    scenes = shop.scenes("train", shop.settings.num_train)
    vae.register_to_config(scaling_factor=encoded_latents(shop, scenes)[1])
    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    scheduler: Any = make_sampler()
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=clip.text_model,
        tokenizer=shop.tokenizer(),
        unet=unet,
        scheduler=scheduler,
        **absent,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int = SAMPLE_STEPS,
    guidance: float = GUIDANCE,
    batch: int = 50,
) -> torch.Tensor:
    """One picture per prompt, (N, 3, H, W) in -1..1; picture i depends on (seed, i) alone."""
    pictures = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [step_generator(seed, part="sample", step=start + i) for i in range(len(part))]
        result = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        )
        pictures.append(torch.from_numpy(np.asarray(result.images)))  # type: ignore[union-attr]
    return torch.cat(pictures).permute(0, 3, 1, 2).mul(2).sub(1)
