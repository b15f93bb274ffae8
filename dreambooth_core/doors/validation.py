"""Pictures of the validation prompt while the training goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from PIL import Image

from dreambooth_core.doors.plan import Plan
from dreambooth_core.models import load, sampling
from dreambooth_core.models.families import native_side
from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.training.narrator import say
from dreambooth_core.training.trainer import StepByStep

_STEPS = 25
_GUIDANCE = 7.5
_SCHEDULERS = {
    "DPMSolverMultistepScheduler": DPMSolverMultistepScheduler,
    "DDPMScheduler": DDPMScheduler,
}

TakePictures = Callable[[Sequence[Image.Image], int], None]
"""Receives the pictures of a step."""


class Validation:
    """A visitor of the loop that draws with the networks as they are, in the main process."""

    def __init__(
        self,
        plan: Plan,
        *,
        prompt: str,
        every: int,
        seed: int,
        take: TakePictures,
        device: torch.device,
        is_main: bool,
    ) -> None:
        self._plan, self._prompt, self._every, self._seed = plan, prompt, every, seed
        self._take, self._device, self._is_main = take, device, is_main

    def is_due(self, step: int) -> bool:
        """At every multiple of validation_steps."""
        return step % self._every == 0

    def visit(self, trainer: StepByStep, *, step: int) -> None:
        """Draw num_validation_images pictures, each of its own seed, the same at every visit."""
        if not self._is_main:
            return
        say(f"validation pictures at step {step}: {self._prompt!r}")
        pipe = load.load_pipeline(self._plan.base_model, Path.cwd(), device=self._device)
        flags = self._plan.flags
        name = getattr(flags, "validation_scheduler", "DPMSolverMultistepScheduler")
        pipe.scheduler = _SCHEDULERS[name].from_config(pipe.scheduler.config)
        for part, module in trainer.trainee.denoiser.parts.items():
            setattr(pipe, part, module)
        num = flags.num_validation_images
        images = sampling.sample(
            pipe,
            prompts=[self._prompt] * num,
            seeds=[derive_seed(self._seed, "validation", index) for index in range(num)],
            steps=_STEPS,
            guidance=_GUIDANCE,
            resolution=native_side(pipe),
            batch_size=1,
        )
        self._take(images, step)
        del pipe
        load.free_memory(self._device)
