"""Generates images with a registered version, a checkpoint folder or a saved pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core import config
from dreambooth_core.models import load, sampling
from dreambooth_core.pipeline.opening import open_model
from dreambooth_core.registry import tracking
from dreambooth_core.workspace import Workspace


@dataclass(frozen=True)
class Request:
    """The images to generate; image i uses `seed + i`. None means the evaluation's value."""

    prompt: str
    num: int
    seed: int
    steps: int | None
    guidance: float | None


def generate(
    workspace: Workspace, model: str, request: Request, out: Path, *, tracking_uri: str | None
) -> dict[str, Any]:
    """Write one PNG per image into `out`; return the files and how they were made.

    Raises SettingsError if `model` is not a model, RegistryError for an unknown version.
    """
    settings = config.load_settings(workspace.params)
    load.configure_torch(settings.compute)
    device = load.pick_device(settings.compute)
    store = tracking.resolve_tracking(workspace, uri=tracking_uri)
    with open_model(workspace, settings, model, device=device, store=store) as pipe:
        images = sampling.sample(
            pipe,
            prompts=[request.prompt] * request.num,
            seeds=[request.seed + index for index in range(request.num)],
            steps=request.steps or settings.evaluate.num_inference_steps,
            guidance=(
                settings.evaluate.guidance_scale if request.guidance is None else request.guidance
            ),
            resolution=settings.data.resolution,
            batch_size=settings.evaluate.sample_batch_size,
        )
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{request.seed + index:06d}.png" for index in range(request.num)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return {
        "model": model,
        "prompt": request.prompt,
        "images": [str(path) for path in paths],
        "seeds": [request.seed + index for index in range(request.num)],
    }
