"""Opens a model for sampling: a registered version, a checkpoint's folder or a saved pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dreambooth_core.config import Settings
from dreambooth_core.models import load, weights
from dreambooth_core.models.families import Pipeline
from dreambooth_core.pipeline import model_references
from dreambooth_core.records import Checkpoint
from dreambooth_core.registry import versions
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.registry.versions import VersionInfo
from dreambooth_core.workspace import Workspace


@dataclass(frozen=True)
class OpenModel:
    """A pipeline, the facts that identify it, and the settings to sample it with."""

    pipe: Pipeline
    facts: dict[str, str]
    settings: Settings


@contextlib.contextmanager
def open_model(
    workspace: Workspace,
    settings: Settings,
    model: str,
    *,
    device: torch.device,
    store: Tracking,
    dtype: torch.dtype = torch.float32,
) -> Iterator[OpenModel]:
    """Load the pipeline of a registry reference, a subject's name or a folder.

    Raises SettingsError if `model` is not a model, RegistryError for an unknown version.
    """
    root, cache = workspace.root, workspace.hash_cache
    folder = Path(model)
    if checkpoint := Checkpoint.read_if_there(folder):
        pipe = load.load_pipeline(settings.base_model, root, device=device, dtype=dtype)
        facts = {"name": folder.resolve().name, "sha256": checkpoint.sha256}
        with weights.applied(pipe, folder, checkpoint):
            yield OpenModel(pipe, facts, settings)
    elif (folder / "model_index.json").is_file() or (folder / weights.BASE_REFERENCE).is_file():
        pipe = weights.load_exported(folder, root, device=device, dtype=dtype, hash_cache=cache)
        yield OpenModel(pipe, {"name": folder.resolve().name}, settings)
    else:
        info = model_references.find(store, model, settings)
        exported = versions.fetch(store, info.uri)
        pipe = weights.load_exported(exported, root, device=device, dtype=dtype, hash_cache=cache)
        facts = {
            "name": info.version.name,
            "version": str(info.version.version),
            "run_id": info.run_id or "",
            "checkpoint": info.version.checkpoint,
            "sha256": info.version.sha256,
        }
        yield OpenModel(pipe, facts, _as_registered(settings, info))


def _as_registered(settings: Settings, info: VersionInfo) -> Settings:
    """The settings with the version's own sampling: params.yaml may be for another model now."""
    own = {s: info.settings[s] for s in ("data", "evaluate") if s in info.settings}
    merged = {**settings.model_dump(by_alias=True), **own}
    try:
        return Settings.model_validate(merged)
    except ValueError:  # a version of another release
        return settings
