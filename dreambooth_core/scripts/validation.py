"""Pictures of the validation prompt while the training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from PIL import Image
from torch import nn

from dreambooth_core.models import load, sampling
from dreambooth_core.models.families import native_side
from dreambooth_core.numerics.seeding import derive_seed
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.training.progress import log_line
from dreambooth_core.training.trainer import StepTrainer

_STEPS = 25
_GUIDANCE = 7.5
_SCHEDULERS = {
    "DPMSolverMultistepScheduler": DPMSolverMultistepScheduler,
    "DDPMScheduler": DDPMScheduler,
}

IsDue = Callable[[int], bool]
"""Whether pictures are drawn after a step."""
TakePictures = Callable[[Sequence[Image.Image], int], None]
"""Receives the pictures of a step."""


def after_steps(every: int) -> IsDue:
    """After every so many updates, as the full fine-tune's script draws."""
    return lambda step: step % every == 0


def after_epochs(every: int, *, steps_per_epoch: int, last: int) -> IsDue:
    """After the first epoch, every so many epochs from there on, and in the end.

    So the LoRA scripts draw, which count epochs from 0 and look after each of them.
    """
    period = every * steps_per_epoch
    first = steps_per_epoch % period
    return lambda step: step == last or step % period == first


class Validation:
    """A callback of the loop that draws with the weights of now, in the main process."""

    def __init__(
        self,
        settings: ScriptSettings,
        *,
        prompt: str,
        is_due: IsDue,
        seed: int,
        take: TakePictures,
        is_main: bool,
    ) -> None:
        self._plan, self._prompt, self._seed = settings, prompt, seed
        self._is_due = is_due
        self._take, self._is_main = take, is_main

    def is_due(self, step: int) -> bool:
        """After the steps that the script's flags name."""
        return self._is_due(step)

    def on_step_end(self, trainer: StepTrainer, *, step: int) -> None:
        """Draw num_validation_images pictures, each of its own seed, the same every time.

        All processes come here: some kinds of updates need them to put the weights together.
        """
        with trainer.state.gathered_weights():
            if self._is_main:
                log_line(f"validation pictures at step {step}: {self._prompt!r}")
                self._take(self._draw(trainer.model.denoiser.parts), step)

    def _draw(self, parts: Mapping[str, nn.Module]) -> list[Image.Image]:
        """The pictures, in the type and on the device that the trained networks have."""
        settings, networks = self._plan.base_model, cast(dict[str, Any], parts)
        device, dtype = networks["unet"].device, networks["unet"].dtype
        pipe = load.load_pipeline(settings, Path.cwd(), device=device, dtype=dtype)
        flags = self._plan.flags
        name = getattr(flags, "validation_scheduler", "DPMSolverMultistepScheduler")
        pipe.scheduler = _SCHEDULERS[name].from_config(pipe.scheduler.config)
        for part, module in networks.items():
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
        del pipe
        load.free_memory(device)
        return images
