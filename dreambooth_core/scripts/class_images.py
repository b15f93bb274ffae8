"""The class images of a script: those in the user's folder, and samples of the missing ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from dreambooth_core import files
from dreambooth_core.blocks import complete_block
from dreambooth_core.config import PriorSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load
from dreambooth_core.pipeline.class_images import make_sampler, set_key
from dreambooth_core.pipeline.common import RunContext, publishing
from dreambooth_core.ports import no_progress
from dreambooth_core.records import Manifest
from dreambooth_core.scripts import class_folder
from dreambooth_core.scripts.disk import make_folder, require_writable
from dreambooth_core.scripts.settings import ScriptSettings
from dreambooth_core.training.distributed import broadcast_from_main
from dreambooth_core.training.progress import log_line, logged_progress

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class _Found:
    """The usable images of the folder, and the missing indices of the set `key`."""

    usable: list[Path]
    key: str
    missing: list[int]

    def complete(self, folder: Path, *, num: int) -> list[Path]:
        """The first `num` images after the missing ones have been sampled."""
        made = [folder / class_folder.made_name(index, self.key) for index in self.missing]
        return sorted([*self.usable, *made])[:num]


def complete(
    context: RunContext, settings: ScriptSettings, *, seed: int, accelerator: Accelerator
) -> Manifest:
    """Sample what is missing to `num_class_images`, and publish exactly that many.

    Without prior preservation the published set is empty. Raises SettingsError for a precision
    that the device does not support, Stopped between two images; finished images stay.
    """
    folder = settings.class_dir
    if folder is None:
        return broadcast_from_main(accelerator, lambda: _publish(context, []))
    device = accelerator.device
    prior, dtype = settings.prior(seed=seed), _dtype(settings, device)

    def look() -> _Found:
        compute = [device.type, settings.compute.num_threads, str(dtype)]
        return _look(context, settings, folder, prior, compute)

    found = broadcast_from_main(accelerator, look)
    if found.missing:
        if accelerator.is_main_process:
            log_line(f"making {len(found.missing)} class images in {folder}")
            _write_manifest(settings, folder, found.key, prior)  # for a set that stays incomplete
        _sample(context, folder, found, prior=prior, dtype=dtype, accelerator=accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_manifest(settings, folder, found.key, prior)
    paths = found.complete(folder, num=prior.num_class_images)
    return broadcast_from_main(accelerator, lambda: _publish(context, paths))


def _dtype(settings: ScriptSettings, device: torch.device) -> torch.dtype:
    asked = settings.flags.prior_generation_precision
    if asked == "fp16" and device.type == "cpu":
        raise SettingsError(
            "--prior_generation_precision: fp16 needs a GPU", allowed="fp32 and bf16 on a CPU"
        )
    if asked is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    return _DTYPES["fp32" if asked == "no" else asked]


def _look(
    context: RunContext,
    settings: ScriptSettings,
    folder: Path,
    prior: PriorSettings,
    compute: Sequence[str | int],
) -> _Found:
    make_folder(folder, flag="class_data_dir")
    files.remove_asides(folder)
    _refuse_other_prompts(settings, folder)
    usable, unusable = class_folder.list_usable(folder, settings.data)
    for line in unusable:
        log_line(f"warning: class image {line}; it does not count")
    num_missing = prior.num_class_images - len(usable)
    if num_missing <= 0:
        return _Found(usable, key="", missing=[])
    require_writable(folder, flag="class_data_dir")
    # Resolution 0 is the base model's own.
    key = set_key(context, prior, resolution=0, compute=compute)
    names = [path.name for path in usable]
    missing = class_folder.missing_indices(names, key=key, num_missing=num_missing)
    return _Found(usable, key, missing)


def _refuse_other_prompts(settings: ScriptSettings, folder: Path) -> None:
    """Raise SettingsError for images that the class prompt does not describe."""
    prompt = settings.subject.class_prompt
    others = class_folder.of_other_prompts(folder, prompt)
    if others:
        raise SettingsError(
            f"--class_data_dir: {folder} holds class images of another prompt",
            got=", ".join(f"{num} of {other!r}" for other, num in sorted(others.items())),
            allowed=f"images of {prompt!r}, and your own",
            hint="use a separate folder for each class prompt",
        )


def _sample(
    context: RunContext,
    folder: Path,
    found: _Found,
    *,
    prior: PriorSettings,
    dtype: torch.dtype,
    accelerator: Accelerator,
) -> None:
    """Sample this process's share of the blocks, and copy the missing images to the folder."""
    size, device = prior.sample_batch_size, accelerator.device
    firsts = sorted({index - index % size for index in found.missing})
    own = firsts[accelerator.process_index :: accelerator.num_processes]
    sampler = make_sampler(context, prior, device=device, dtype=dtype)
    store = context.places.store_dir("class-images", found.key)
    show = logged_progress("class images") if accelerator.is_main_process else no_progress
    for turn, first in enumerate(own, start=1):
        indices = range(first, first + size)
        block = complete_block(
            store, found.key, indices, sampler=sampler, should_stop=context.should_stop
        )
        for index, image in zip(indices, block, strict=True):
            if index in found.missing:
                name = class_folder.made_name(index, found.key)
                files.write_bytes(folder / name, image.path.read_bytes())
        show(turn, len(own), "batches")
    del sampler
    load.free_memory(device)


def _write_manifest(settings: ScriptSettings, folder: Path, key: str, prior: PriorSettings) -> None:
    try:
        class_folder.write_manifest(
            folder,
            key=key,
            prompt=settings.subject.class_prompt,
            base_model=settings.base_model.pretrained_model_name_or_path,
            prior=prior,
        )
    except OSError as error:
        where = class_folder.manifest_path(folder)
        log_line(f"warning: {where} cannot be written ({error.strerror}); the images are complete")


def _publish(context: RunContext, paths: Sequence[Path]) -> Manifest:
    with publishing(context.places, "class-images") as out:
        return class_folder.gather(paths, data=context.settings.data, out=out)
