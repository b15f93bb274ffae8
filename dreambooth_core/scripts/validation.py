"""Validation images during the training."""

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
from dreambooth_core.scripts.flags import ScriptFlags
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
"""Whether validation is due after a step."""
LogImages = Callable[[Sequence[Image.Image], int], None]
"""Receives the images of a step."""


def make_is_due(flags: ScriptFlags, *, steps_per_epoch: int, last: int) -> IsDue:
    """When validation is due: each script has a flag for steps or one for epochs."""
    steps = getattr(flags, "validation_steps", None)
    if steps is not None:
        return lambda step: step % steps == 0
    epochs: int = flags.validation_epochs  # pyright: ignore[reportAttributeAccessIssue]
    return after_epochs(epochs, steps_per_epoch=steps_per_epoch, last=last)


def after_epochs(every: int, *, steps_per_epoch: int, last: int) -> IsDue:
    """After the first epoch, after every N-th epoch from there, and at the end.

    The LoRA scripts of the guide count epochs from 0 and check after each.
    """
    period = every * steps_per_epoch
    first = steps_per_epoch % period
    return lambda step: step == last or step % period == first


class Validation:
    """A callback that generates images by the current weights, in the main process."""

    def __init__(
        self, settings: ScriptSettings, *, is_due: IsDue, seed: int, log: LogImages, is_main: bool
    ) -> None:
        self._settings, self._is_due, self._seed = settings, is_due, seed
        self._log, self._is_main = log, is_main
        self._prompt = settings.flags.validation_prompt or ""

    def is_due(self, step: int) -> bool:
        """Whether validation is due after `step`."""
        return self._is_due(step)

    def on_step_end(self, trainer: StepTrainer, *, step: int) -> None:
        """Generate num_validation_images images, each with the same seed at every step.

        All processes call this, because a strategy may gather the weights from all of them.
        """
        with trainer.state.gathered_weights():
            if self._is_main:
                log_line(f"validation pictures at step {step}: {self._prompt!r}")
                self._log(self._generate(trainer.model.denoiser.parts), step)

    def _generate(self, parts: Mapping[str, nn.Module]) -> list[Image.Image]:
        """Generate images in the dtype and on the device of the trained networks."""
        base, networks = self._settings.base_model, cast(dict[str, Any], parts)
        device, dtype = networks["unet"].device, networks["unet"].dtype
        pipe = load.load_pipeline(base, Path.cwd(), device=device, dtype=dtype)
        flags = self._settings.flags
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
