"""Images on demand: from a registered version, a checkpoint folder, or a saved pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth_core import config
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, sampling, weights
from dreambooth_core.models.families import Pipeline
from dreambooth_core.records import Checkpoint
from dreambooth_core.registry import tracking, versions
from dreambooth_core.workspace import Workspace


@dataclass(frozen=True)
class Request:
    """What to draw; image i is drawn from `seed + i`. None: as the evaluation does."""

    prompt: str
    num: int
    seed: int
    steps: int | None
    guidance: float | None


def draw(
    workspace: Workspace, model: str, request: Request, out: Path, *, tracking_uri: str
) -> dict[str, Any]:
    """Draw into `out`, a PNG per image; says which files and from what.

    Raises SettingsError for a folder that is no model, RegistryError for an unknown version.
    """
    settings = config.load_settings(workspace.params)
    load.configure_torch(settings.compute)
    device = load.pick_device(settings.compute)
    store = tracking.resolve_tracking(workspace, uri=tracking_uri)
    with _opened(workspace, settings, model, device=device, store=store) as pipe:
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


@contextlib.contextmanager
def _opened(
    workspace: Workspace,
    settings: config.Settings,
    model: str,
    *,
    device: torch.device,
    store: tracking.Tracking,
) -> Iterator[Pipeline]:
    """The pipeline that a reference or a folder means."""
    root, cache = workspace.root, workspace.hash_cache
    folder = Path(model)
    if model.startswith("models:/"):
        exported = versions.fetch(store, model)
        yield weights.load_exported(exported, root, device=device, hash_cache=cache)
    elif checkpoint := Checkpoint.read_if_there(folder):
        pipe = load.load_pipeline(settings.base_model, root, device=device)
        with weights.applied(pipe, folder, checkpoint):
            yield pipe
    elif (folder / "model_index.json").is_file() or (folder / weights.BASE_REFERENCE).is_file():
        yield weights.load_exported(folder, root, device=device, hash_cache=cache)
    else:
        raise SettingsError(
            "this is no model",
            got=model,
            allowed="models:/NAME@champion, models:/NAME/3, a checkpoint-<step> folder, or the "
            "folder of a saved pipeline",
        )
