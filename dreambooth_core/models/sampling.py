"""Sampling with a pipeline so that every image depends only on its own prompt and seed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from dreambooth_core.config import Solver
from dreambooth_core.errors import Stopped
from dreambooth_core.models.families import Pipeline, text_encoders_of
from dreambooth_core.models.prompts import TOKENIZERS, check_prompts, tokenizers_of
from dreambooth_core.models.tensors import eval_mode
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress


def sample(  # noqa: PLR0913 - the sampler's settings are all needed and all named
    pipe: Pipeline,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    resolution: int,
    batch_size: int,
    negative_prompt: str = "",
    progress: Progress = no_progress,
    should_stop: StopSignal = never_stop,
) -> list[Image.Image]:
    """Sample one RGB image of `resolution` px per side for each prompt and seed.

    Blocks have exactly `batch_size` images: the last one is padded and the padding dropped, because
    the batch size changes bits. So image i depends on prompt i, seed i and its place in its block,
    never on the number of images. Raises SettingsError for a prompt that the text encoder would
    cut, and Stopped between two denoising steps if `should_stop()`.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
    named = {f"the prompt {prompt!r}": prompt for prompt in dict.fromkeys(prompts)}
    check_prompts({**named, "the negative prompt": negative_prompt}, tokenizers_of(_own_copy(pipe)))
    images: list[Image.Image] = []
    with eval_mode(pipe.unet, pipe.vae, *text_encoders_of(pipe).values()):
        for start in range(0, len(prompts), batch_size):
            _raise_if_stopped(should_stop)
            block = slice(start, start + batch_size)
            images += _draw_block(
                pipe,
                prompts=prompts[block],
                seeds=seeds[block],
                batch_size=batch_size,
                should_stop=should_stop,
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=resolution,
                width=resolution,
                # Without one SDXL takes zeros; an empty text is another thing to it.
                negative_prompt=[negative_prompt] * batch_size if negative_prompt else None,
            )
            progress(len(images), len(prompts))
    return images


def _own_copy(pipe: Pipeline) -> Pipeline:
    """The pipeline with a sampler and tokenizers of its own, so that threads share only models.

    A call of a tokenizer sets its padding for later ones, also for a call in another thread that
    has just set it: that one's prompts would lose their padding, and the image its bytes.
    """
    own: Any = copy.copy(pipe)
    for name in ("scheduler", *TOKENIZERS):
        if getattr(pipe, name, None) is not None:
            setattr(own, name, copy.deepcopy(getattr(pipe, name)))
    return own


def _draw_block(
    pipe: Pipeline,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    should_stop: StopSignal,
    **call: Any,
) -> list[Image.Image]:
    missing = batch_size - len(prompts)
    filled_prompts = [*prompts, *[prompts[-1]] * missing]
    filled_seeds = [*seeds, *[seeds[-1]] * missing]
    # CPU generators, so that a seed gives the same noise on every device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in filled_seeds]

    def stop_between_steps(
        _pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        _raise_if_stopped(should_stop)
        return tensors

    draw: Any = _own_copy(pipe)  # diffusers annotates the call more narrowly than it is
    output = draw(
        prompt=filled_prompts,
        generator=generators,
        output_type="pil",
        callback_on_step_end=stop_between_steps,
        **call,
    )
    return list(output.images[: len(prompts)])


def _raise_if_stopped(should_stop: StopSignal) -> None:
    if should_stop():
        raise Stopped("the sampling stopped on request", hint="run it again to continue")


def give_solver(pipe: Pipeline, solver: Solver | None) -> None:
    """Replace the pipeline's sampler; None keeps its own.

    dpm++ is DPM-Solver++ of second order (Lu et al. 2022, "DPM-Solver++", algorithm 2), with the
    noise schedule and prediction type of the pipeline's own sampler.
    """
    if solver is None:
        return
    stated: Any = pipe.scheduler.config
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        stated, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )


def solver_name(solver: Solver | None, *, own: str) -> str:
    """The name of the sampler in use, for records; `own` is the pipeline's own."""
    return own if solver is None else f"{DPMSolverMultistepScheduler.__name__} ({solver})"
