"""Opens a model for sampling: a registered version, a checkpoint's folder or a saved pipeline."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dreambooth_core.config import BaseModelSettings, Settings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import load, strength, weights
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
    strength_of_training: float = 1.0,
) -> Iterator[OpenModel]:
    """Load the pipeline of a registry reference, a subject's name or a folder.

    `strength_of_training` weakens or exaggerates what was learned. Raises SettingsError if `model`
    is not a model, RegistryError for an unknown version.
    """
    root, cache = workspace.root, workspace.hash_cache
    folder = Path(model)
    load_base = functools.partial(
        load.load_pipeline, settings.base_model, root, device=torch.device("cpu"), dtype=dtype
    )
    blend = functools.partial(strength.set_strength, strength=strength_of_training)
    if checkpoint := Checkpoint.read_if_there(folder):
        pipe = load.load_pipeline(settings.base_model, root, device=device, dtype=dtype)
        facts = {"name": folder.resolve().name, "sha256": checkpoint.sha256}
        with weights.applied(pipe, folder, checkpoint):
            blend(pipe, load_base=load_base)
            yield OpenModel(pipe, facts, settings)
    elif (folder / "model_index.json").is_file() or (folder / weights.BASE_REFERENCE).is_file():
        pipe = weights.load_exported(folder, root, device=device, dtype=dtype, hash_cache=cache)
        blend(pipe, load_base=load_base)
        yield OpenModel(pipe, {"name": folder.resolve().name}, settings)
    else:
        info = model_references.find(store, model, settings)
        exported = versions.fetch(store, info.uri)
        pipe = weights.load_exported(exported, root, device=device, dtype=dtype, hash_cache=cache)
        blend(pipe, load_base=lambda: _base_of(info, settings, workspace, dtype))
        yield OpenModel(pipe, _facts_of(info), _as_registered(settings, info))


def _facts_of(info: VersionInfo) -> dict[str, str]:
    """The facts that identify a version in the file of an image."""
    return {
        "name": info.version.name,
        "version": str(info.version.version),
        "run_id": info.run_id or "",
        "checkpoint": info.version.checkpoint,
        "sha256": info.version.sha256,
    }


def _base_of(
    info: VersionInfo, settings: Settings, workspace: Workspace, dtype: torch.dtype
) -> Pipeline:
    """The base model that a version was trained from. Raises SettingsError if it is not here."""
    own = info.settings.get("base_model")
    base = BaseModelSettings.model_validate(own) if own else settings.base_model
    found = load.resolve_base_model(base, workspace.root, hash_cache=workspace.hash_cache)
    wanted = info.tags.get("base_model_sha256")
    if wanted is not None and found.sha256 != wanted:
        raise SettingsError(
            f"--strength: the base model {found.name} is not the one that {info.uri} started from",
            got=f"sha256 {found.sha256[:16]}",
            allowed=f"sha256 {wanted[:16]}",
        )
    return load.load_pipeline(base, workspace.root, device=torch.device("cpu"), dtype=dtype)


def _as_registered(settings: Settings, info: VersionInfo) -> Settings:
    """The settings with the version's own sampling: params.yaml may be for another model now."""
    own = {s: info.settings[s] for s in ("data", "evaluate") if s in info.settings}
    merged = {**settings.model_dump(by_alias=True), **own}
    try:
        return Settings.model_validate(merged)
    except ValueError:  # a version of another release
        return settings
