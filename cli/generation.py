"""Generates images with a registered version, a checkpoint folder or a saved pipeline."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from cli import picture_folder, session
from cli.open_models import OpenModels
from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, prompts, sampling
from dreambooth_core.models.families import Pipeline
from dreambooth_core.pipeline.opening import OpenModel, open_model
from dreambooth_core.ports import Progress, no_progress
from dreambooth_core.registry import tracking
from dreambooth_core.report import contact_sheet
from dreambooth_core.report.png_metadata import ImageRecord, encode_png
from dreambooth_core.workspace import Workspace

_PACKAGE = "dreambooth-pipeline"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Request:
    """The images to generate; image i uses `seed + i`. None means the settings' value."""

    prompt: str
    negative_prompt: str
    num: int
    seed: int
    steps: int | None
    guidance: float | None
    batch_size: int | None
    device: Device | None
    dtype: Dtype
    with_sheet: bool
    strength: float = 1.0


def generate(
    workspace: Workspace,
    model: str,
    request: Request,
    out: Path,
    *,
    tracking_uri: str | None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Write one PNG per image and a contact sheet into `out`; return the files and settings.

    No file in `out` is changed. Raises SettingsError for what cannot be done, before the model is
    loaded if possible, and RegistryError for an unknown version.
    """
    prompts.require_text("--prompt", request.prompt)
    settings = config.load_settings(workspace.params)
    device = _device(settings.compute, request)
    load.configure_torch(settings.compute)
    store = tracking.resolve_tracking(workspace, uri=tracking_uri)
    with (
        picture_folder.opened(out),
        _opener()(
            workspace,
            settings,
            model,
            device=device,
            store=store,
            dtype=_DTYPES[request.dtype],
            strength_of_training=request.strength,
        ) as ready,
    ):
        named = {"--prompt": request.prompt, "--negative-prompt": request.negative_prompt}
        prompts.check_prompts(named, prompts.tokenizers_of(ready.pipe))
        blank = _record(ready, request, device)
        written = _write_images(ready.pipe, blank, request, out, progress)
    sheet = _write_sheet(written, blank, out) if request.with_sheet and request.num > 1 else None
    return {
        "model": model,
        **{key: value for key, value in blank.to_json().items() if key not in ("seed", "model")},
        "model_facts": dict(blank.model),
        "images": [str(path) for path in written],
        "seeds": [request.seed + index for index in range(request.num)],
        "sheet": None if sheet is None else str(sheet),
    }


def _opener() -> Callable[..., contextlib.AbstractContextManager[OpenModel]]:
    """What opens models: in a process that stays, they do too."""
    return _open_models().opened if session.keeps_models.get() else open_model


@functools.cache
def _open_models() -> OpenModels:
    return OpenModels()


def _device(compute: config.ComputeSettings, request: Request) -> torch.device:
    """The device of the flags or the settings. Raises SettingsError if it cannot do the work."""
    asked = request.device or compute.device
    if request.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "--device cuda: torch finds no GPU on this machine",
            got=f"torch {torch.__version__}",
            hint="--device cpu, or leave it out",
        )
    device = load.pick_device(compute.model_copy(update={"device": asked}))
    lacks_bf16 = device.type == "cuda" and not torch.cuda.is_bf16_supported()
    if (request.dtype == "fp16" and device.type == "cpu") or (
        request.dtype == "bf16" and lacks_bf16
    ):
        raise SettingsError(
            f"--dtype {request.dtype}: not on this device",
            got=f"device {device.type}",
            allowed="fp32 and bf16 on a CPU" if device.type == "cpu" else "fp32 and fp16 here",
        )
    return device


def _record(ready: OpenModel, request: Request, device: torch.device) -> ImageRecord:
    """What all images of the request have in common."""
    evaluate, side = ready.settings.evaluate, ready.settings.data.resolution
    guidance = evaluate.guidance_scale if request.guidance is None else request.guidance
    return ImageRecord(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        steps=request.steps or evaluate.num_inference_steps,
        guidance=guidance,
        sampler=type(ready.pipe.scheduler).__name__,
        width=side,
        height=side,
        batch_size=request.batch_size or evaluate.sample_batch_size,
        device=device.type,
        dtype=request.dtype,
        model=ready.facts,
        program=f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)}",
        strength=request.strength,
    )


def _write_images(
    pipe: Pipeline, blank: ImageRecord, request: Request, out: Path, progress: Progress
) -> dict[Path, tuple[int, Image.Image]]:
    """Sample block by block; each block is on the disk before the next begins."""
    written: dict[Path, tuple[int, Image.Image]] = {}
    number = picture_folder.next_number(out)
    progress(0, request.num)
    for start in range(0, request.num, blank.batch_size):
        stop = min(start + blank.batch_size, request.num)
        seeds = [request.seed + index for index in range(start, stop)]
        images = sampling.sample(
            pipe,
            prompts=[blank.prompt] * len(seeds),
            seeds=seeds,
            steps=blank.steps,
            guidance=blank.guidance,
            resolution=blank.width,
            batch_size=blank.batch_size,
            negative_prompt=blank.negative_prompt,
        )
        for seed, image in zip(seeds, images, strict=True):
            data = encode_png(image, _with_seed(blank, seed))
            path, number = picture_folder.write_new(out, number, f"-{seed}.png", data)
            written[path], number = (seed, image), number + 1
        progress(stop, request.num)
    return written


def _with_seed(blank: ImageRecord, seed: int) -> ImageRecord:
    return ImageRecord(**{**vars(blank), "seed": seed})


def _write_sheet(
    written: dict[Path, tuple[int, Image.Image]], blank: ImageRecord, out: Path
) -> Path:
    images = {f"{path.stem}": image for path, (_seed, image) in written.items()}
    buffer = io.BytesIO()
    contact_sheet.draw_sheet(blank.prompt, images).save(buffer, format="PNG")
    first = next(iter(images))
    path, _number = picture_folder.write_new(
        out, int(first.split("-")[0]), "-sheet.png", buffer.getvalue()
    )
    return path
