"""Making the class images that a folder lacks, shared among the processes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image

from dreambooth_core import files
from dreambooth_core.blocks import png_bytes
from dreambooth_core.config import PriorSettings
from dreambooth_core.data.class_images import class_image_key, class_seed
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, sampling
from dreambooth_core.models.families import Pipeline, native_side
from dreambooth_core.ports import StopSignal
from dreambooth_core.records import Manifest
from dreambooth_core.scripts import class_folder
from dreambooth_core.scripts.agreement import from_main
from dreambooth_core.scripts.disk import make_folder, require_writable
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.training.progress import log_line

FOLDER = "class"
"""Below the run's own folder: links to the class images, or copies, and their manifest."""

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class _Found:
    """What is in the folder, and what has to be made: indices of the set `key`."""

    usable: tuple[Path, ...]
    key: str
    missing: list[int]

    def complete(self, folder: Path, *, num: int) -> list[Path]:
        """The first `num` images when the missing ones have been made."""
        made = [folder / class_folder.made_name(index, self.key) for index in self.missing]
        return sorted([*self.usable, *made])[:num]


def complete(
    plan: ScriptSettings,
    folder: Path,
    *,
    seed: int,
    accelerator: Accelerator,
    should_stop: StopSignal,
) -> Manifest:
    """Make what is missing to `num_class_images`, and gather exactly so many.

    Raises SettingsError for a precision that the device cannot serve, Stopped between two images;
    what was finished stays in the folder.
    """
    prior, dtype = plan.prior(seed=seed), _dtype(plan, accelerator.device)
    found = from_main(accelerator, lambda: _look(plan, folder, prior, dtype, accelerator.device))
    if found.missing:
        if accelerator.is_main_process:
            _write_manifest(plan, folder, found.key, prior)  # for a set that is never finished
        _draw(plan, folder, found, prior=prior, accelerator=accelerator, should_stop=should_stop)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_manifest(plan, folder, found.key, prior)
    paths = found.complete(folder, num=prior.num_class_images)
    return from_main(accelerator, lambda: _gather(plan, paths))


def _dtype(plan: ScriptSettings, device: torch.device) -> torch.dtype:
    asked = plan.flags.prior_generation_precision
    if asked == "fp16" and device.type == "cpu":
        raise SettingsError(
            "--prior_generation_precision: fp16 needs a GPU", allowed="fp32 and bf16 on a CPU"
        )
    if asked is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    return _DTYPES["fp32" if asked == "no" else asked]


def _look(
    plan: ScriptSettings,
    folder: Path,
    prior: PriorSettings,
    dtype: torch.dtype,
    device: torch.device,
) -> _Found:
    make_folder(folder, flag="class_data_dir")
    files.remove_asides(folder)
    _refuse_other_prompts(plan, folder)
    usable = class_folder.list_usable(folder, plan.data)
    for line in usable.unusable:
        log_line(f"warning: class image {line}; it does not count")
    num_missing = prior.num_class_images - len(usable.paths)
    if num_missing <= 0:
        return _Found(usable.paths, key="", missing=[])
    require_writable(folder, flag="class_data_dir")
    key = class_image_key(
        load.resolve_base_model(
            plan.base_model, Path.cwd(), hash_cache=plan.state_dir / "hashes.json"
        ),
        class_prompt=plan.class_prompt,
        prior=prior,
        resolution=0,  # the base model's own
        sampler=sampling.solver_name(
            prior.solver, own=load.sampler_name(plan.base_model, Path.cwd())
        ),
        compute=[device.type, plan.compute.num_threads, str(dtype)],
    )
    names = [path.name for path in usable.paths]
    missing = class_folder.missing_indices(names, key=key, num_missing=num_missing)
    return _Found(usable.paths, key, missing)


def _refuse_other_prompts(plan: ScriptSettings, folder: Path) -> None:
    """They would be trained on under a prompt that does not describe them."""
    others = class_folder.of_other_prompts(folder, plan.class_prompt)
    if others:
        raise SettingsError(
            f"--class_data_dir: {folder} holds class images of another prompt",
            got=", ".join(f"{num} of {prompt!r}" for prompt, num in sorted(others.items())),
            allowed=f"images of {plan.class_prompt!r}, and your own",
            hint="give each class prompt a folder of its own",
        )


def _draw(
    plan: ScriptSettings,
    folder: Path,
    found: _Found,
    *,
    prior: PriorSettings,
    accelerator: Accelerator,
    should_stop: StopSignal,
) -> None:
    """Draw this process's share of the blocks."""
    blocks = class_folder.blocks_of(found.missing, size=prior.sample_batch_size)
    own = list(blocks.items())[accelerator.process_index :: accelerator.num_processes]
    if accelerator.is_main_process:
        log_line(f"making {len(found.missing)} class images in {folder}")
    dtype = _dtype(plan, accelerator.device)
    pipe = load.load_pipeline(plan.base_model, Path.cwd(), device=accelerator.device, dtype=dtype)
    sampling.give_solver(pipe, prior.solver)
    for turn, (block, wanted) in enumerate(own, start=1):
        first = block * prior.sample_batch_size
        indices = range(first, first + prior.sample_batch_size)
        images = _sample(pipe, plan, indices, prior=prior, should_stop=should_stop)
        for index, image in zip(indices, images, strict=True):
            if index in wanted:
                name = class_folder.made_name(index, found.key)
                files.write_bytes(folder / name, png_bytes(image))
        if accelerator.is_main_process:
            log_line(f"class images: {turn} of {len(own)} batches")
    del pipe
    load.free_memory(accelerator.device)


def _sample(
    pipe: Pipeline,
    plan: ScriptSettings,
    indices: Sequence[int],
    *,
    prior: PriorSettings,
    should_stop: StopSignal,
) -> list[Image.Image]:
    return sampling.sample(
        pipe,
        prompts=[plan.class_prompt] * len(indices),
        seeds=[class_seed(prior.seed, index) for index in indices],
        steps=prior.num_inference_steps,
        guidance=prior.guidance_scale,
        resolution=native_side(pipe),
        batch_size=prior.sample_batch_size,
        should_stop=should_stop,
    )


def _write_manifest(plan: ScriptSettings, folder: Path, key: str, prior: PriorSettings) -> None:
    try:
        class_folder.write_manifest(
            folder,
            key=key,
            prompt=plan.class_prompt,
            base_model=plan.base_model.pretrained_model_name_or_path,
            prior=prior,
        )
    except OSError as error:
        where = class_folder.manifest_path(folder)
        log_line(f"warning: {where} cannot be written ({error.strerror}); the images are complete")


def _gather(plan: ScriptSettings, paths: Sequence[Path]) -> Manifest:
    with files.atomic_dir(plan.state_dir / FOLDER) as out:
        return class_folder.gather(paths, data=plan.data, out=out)
