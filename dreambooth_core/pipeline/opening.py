"""Opens a model for sampling: a registered version, a checkpoint's folder or a saved pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from dreambooth_core.config import Settings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, weights
from dreambooth_core.models.families import Pipeline
from dreambooth_core.records import Checkpoint
from dreambooth_core.registry import versions
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.workspace import Workspace


@contextlib.contextmanager
def open_model(
    workspace: Workspace,
    settings: Settings,
    model: str,
    *,
    device: torch.device,
    store: Tracking,
) -> Iterator[Pipeline]:
    """Load the pipeline of a registry reference or a folder.

    Raises SettingsError if `model` is not a model, RegistryError for an unknown version.
    """
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
            "not a model",
            got=model,
            allowed="models:/NAME@champion, models:/NAME/3, a checkpoint-<step> folder, or the "
            "folder of a saved pipeline",
        )
