"""Finds the weights that `train.init_from` names: a registered version or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.config import SubjectView
from dreambooth_core.errors import RegistryError, SettingsError, UnknownModelError
from dreambooth_core.models.lora import LORA_FILE
from dreambooth_core.models.weights import COMPONENTS, verify_checkpoint
from dreambooth_core.pipeline.common import StageContext, base_identity
from dreambooth_core.records import Checkpoint, InitialWeights, TrainingRun
from dreambooth_core.registry import versions
from dreambooth_core.registry.tracking import Tracking, resolve_tracking
from dreambooth_core.registry.versions import VersionInfo
from dreambooth_core.workspace import Workspace

_KEY = "train.init_from"
_REGISTERED = "models:/"


@dataclass(frozen=True)
class Found:
    """The weights by name and content, and the folder that has them."""

    weights: InitialWeights
    folder: Path


def check(root: Path, view: SubjectView, env: Mapping[str, str]) -> None:
    """Raise SettingsError if `train.init_from` names nothing that the training can start from."""
    reference = view.train.init_from
    if reference is None:
        return
    if reference.startswith(_REGISTERED):
        _version(_store(root, env), reference, view)
    else:
        _require_weights(root / reference, view)


def find(context: StageContext) -> Found | None:
    """The weights of `train.init_from`, verified; None if it is null. Raises SettingsError."""
    view, root = context.settings, context.places.root
    reference = view.train.init_from
    if reference is None:
        return None
    if not reference.startswith(_REGISTERED):
        folder = root / reference
        _require_weights(folder, view)
        name = folder.resolve().name if Path(reference).is_absolute() else reference
        return Found(InitialWeights(name=name, sha256=_content(folder)), folder)
    store = _store(root, context.env)
    info = _version(store, reference, view)
    trained_on, wanted = info.tags.get("base_model_sha256"), base_identity(context)
    if trained_on != wanted.sha256:
        raise SettingsError(
            f"{info.uri} was trained on another base model",
            key=_KEY,
            got=f"{info.tags.get('base_model')}, sha256 {trained_on}",
            allowed=f"{wanted.name}, sha256 {wanted.sha256}",
        )
    folder = versions.fetch(store, info.uri)
    _require_weights(folder, view)
    named = InitialWeights(name=info.version.name, sha256=info.version.sha256)
    return Found(named, folder)


def parent_tags(tracking: Tracking, training: TrainingRun) -> dict[str, str]:
    """The tags of a run and a version that say what the training started from."""
    initial = training.init_from
    if initial is None:
        return {}
    parent = _parent(tracking, initial) or initial.name
    return {"init_from": parent, "init_from_sha256": initial.sha256}


def _parent(tracking: Tracking, initial: InitialWeights) -> str | None:
    """The newest version with these weights; None if they came from a folder."""
    try:
        known = versions.list_versions(tracking, name=initial.name)
    except RegistryError:  # a folder's name, or a model that was deleted
        return None
    same = [info.uri for info in known if info.version.sha256 == initial.sha256]
    return same[-1] if same else None


def _store(root: Path, env: Mapping[str, str]) -> Tracking:
    return resolve_tracking(Workspace(root), uri=env.get("MLFLOW_TRACKING_URI"))


def _version(store: Tracking, reference: str, view: SubjectView) -> VersionInfo:
    """The version of a reference. Raises SettingsError if this training cannot go on from it."""
    try:
        info = versions.resolve_reference(store, reference)
    except UnknownModelError as error:
        raise SettingsError(
            error.what, key=_KEY, got=reference, allowed=error.allowed, hint=error.hint
        ) from None
    trained = info.settings.get("train", {})
    for name in ("method", "train_text_encoder"):
        own = getattr(view.train, name)
        if name in trained and trained[name] != own:
            raise SettingsError(
                f"{info.uri} was trained with another train.{name}",
                key=_KEY,
                got=str(trained[name]),
                allowed=str(own),
                hint=f"set train.{name} to {str(trained[name]).lower()}",
            )
    return info


def _require_weights(folder: Path, view: SubjectView) -> None:
    """Raise SettingsError unless the folder has weights of the trained kind."""
    is_lora = view.train.method == "lora"
    if (folder / LORA_FILE).is_file() if is_lora else (folder / "unet").is_dir():
        return
    raise SettingsError(
        f"no folder with {'LoRA adapters' if is_lora else 'the weights of a U-Net'}",
        key=_KEY,
        got=str(folder) if folder.exists() else f"{folder}, which does not exist",
        allowed="a checkpoint-<step> folder, the folder of a pipeline, or models:/NAME@champion",
        hint=f"train.method is {view.train.method}",
    )


def _content(folder: Path) -> str:
    """The hash of a folder's weights: the recorded one of a checkpoint, once verified."""
    checkpoint = Checkpoint.read_if_there(folder)
    if checkpoint is not None:
        verify_checkpoint(folder, checkpoint)
        return checkpoint.sha256
    paths = [folder / LORA_FILE] if (folder / LORA_FILE).is_file() else []
    paths += [p for part in COMPONENTS for p in sorted((folder / part).glob("*.safetensors"))]
    return files.digest_of({p.relative_to(folder).as_posix(): files.sha256_file(p) for p in paths})
