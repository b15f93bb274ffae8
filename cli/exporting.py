"""Writes a model for other programs: an adapter for diffusers or kohya, or a whole pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dreambooth_core import config, files
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import lora, strength, weights
from dreambooth_core.pipeline import model_references
from dreambooth_core.pipeline.opening import open_model
from dreambooth_core.records import Checkpoint
from dreambooth_core.registry import tracking, versions
from dreambooth_core.registry.tracking import Tracking
from dreambooth_core.workspace import Workspace

Form = Literal["lora", "kohya", "pipeline"]


@dataclass(frozen=True)
class _Source:
    """The model to export: its name for files, and the folder that may have an adapter."""

    name: str
    folder: Path


def export(
    workspace: Workspace, model: str, form: Form, out: Path, *, tracking_uri: str | None
) -> dict[str, Any]:
    """Write a model into the folder `out`, under a new name; returns what was written.

    Raises SettingsError for a form that the model does not have or a name that is taken, and
    RegistryError for an unknown version.
    """
    store = tracking.resolve_tracking(workspace, uri=tracking_uri)
    settings = config.load_settings(workspace.params)
    found = _find(store, model, settings)
    target = out / (found.name if form == "pipeline" else f"{found.name}-{form}.safetensors")
    if target.exists():
        raise SettingsError(
            f"--out: {target} is there already", hint="move it away, or give another folder"
        )
    with _files_explained(out):
        out.mkdir(parents=True, exist_ok=True)
        if form == "pipeline":
            _write_pipeline(workspace, settings, model, target, store)
        else:
            _write_adapter(found, form, target)
    return {"model": model, "as": form, "path": str(target), "bytes": _size(target)}


def _find(store: Tracking, model: str, settings: config.Settings) -> _Source:
    folder = Path(model)
    known = (weights.BASE_REFERENCE, "model_index.json")
    if Checkpoint.read_if_there(folder) or any((folder / name).is_file() for name in known):
        return _Source(folder.resolve().name, folder)
    info = model_references.find(store, model, settings)
    name = f"{info.version.name}-{info.version.version}"
    return _Source(name, versions.fetch(store, info.uri))


def _write_adapter(found: _Source, form: Form, target: Path) -> None:
    if not (found.folder / lora.LORA_FILE).is_file():
        raise SettingsError(
            f"--as {form}: {found.name} has no adapter: all of its weights were trained",
            allowed="pipeline",
            hint="train with `train.method: lora` for a small file",
        )
    if form == "kohya":
        lora.write_kohya(found.folder, out=target)
    else:
        files.write_bytes(target, (found.folder / lora.LORA_FILE).read_bytes())


def _write_pipeline(
    workspace: Workspace, settings: config.Settings, model: str, target: Path, store: Tracking
) -> None:
    """Write the pipeline with its trained weights; an adapter is merged into the networks."""
    device = torch.device("cpu")
    with (
        files.atomic_dir(target) as aside,
        open_model(workspace, settings, model, device=device, store=store) as ready,
    ):
        if strength.has_adapter(ready.pipe):
            ready.pipe.fuse_lora()
            ready.pipe.unload_lora_weights()
        weights.write_pipeline(ready.pipe, aside)


def _size(path: Path) -> int:
    found = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in found if each.is_file())


@contextlib.contextmanager
def _files_explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"--out: nothing can be written to {out}",
            got=error.strerror or str(error),
            hint="choose another folder, or free disk space",
        ) from None
