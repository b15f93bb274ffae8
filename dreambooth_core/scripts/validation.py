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
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.training.loop import Callback
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


def after_steps(every: int) -> IsDue:
    """Every N updates, as in the script for full fine-tuning."""
    return lambda step: step % every == 0


def after_epochs(every: int, *, steps_per_epoch: int, last: int) -> IsDue:
    """After the first epoch, after every N-th epoch from there, and at the end.

    The LoRA scripts of the guide count epochs from 0 and check after each.
    """
    period = every * steps_per_epoch
    first = steps_per_epoch % period
    return lambda step: step == last or step % period == first


def callbacks(
    settings: ScriptSettings,
    *,
    seed: int,
    steps_per_epoch: int,
    last: int,
    log: LogImages,
    is_main: bool,
) -> list[Callback]:
    """The callbacks of the loop: validation by steps or by epochs, if there is a prompt."""
    flags = settings.flags
    if flags.validation_prompt is None:
        return []
    steps = getattr(flags, "validation_steps", None)  # each script has one of the two flags
    if steps is not None:
        is_due = after_steps(steps)
    else:
        epochs: int = flags.validation_epochs  # pyright: ignore[reportAttributeAccessIssue]
        is_due = after_epochs(epochs, steps_per_epoch=steps_per_epoch, last=last)
    prompt = flags.validation_prompt
    return [Validation(settings, prompt=prompt, is_due=is_due, seed=seed, log=log, is_main=is_main)]


class Validation:
    """A callback that generates images by the current weights, in the main process."""

    def __init__(
        self,
        settings: ScriptSettings,
        *,
        prompt: str,
        is_due: IsDue,
        seed: int,
        log: LogImages,
        is_main: bool,
    ) -> None:
        self._settings, self._prompt, self._seed = settings, prompt, seed
        self._is_due = is_due
        self._log, self._is_main = log, is_main

    def is_due(self, step: int) -> bool:
        """Whether validation is due after `step`."""
        return self._is_due(step)

    def on_step_end(self, trainer: StepTrainer, *, step: int) -> None:
        """Generate num_validation_images images, each by the same seed every time.

        All processes come here: some kinds of updates need them to put the weights together.
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
