"""Weights of checkpoints: write them, swap them into a loaded pipeline, export them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import other as accelerate_unwrapping
from torch import nn

from dreambooth_core import files
from dreambooth_core.config import BaseModelSettings
from dreambooth_core.errors import CorruptRecordError, repeat_hint
from dreambooth_core.models import load, lora, source
from dreambooth_core.models.families import TEXT_ENCODERS, Pipeline, text_encoders_of
from dreambooth_core.models.tensors import read_tensors
from dreambooth_core.records import BaseModelIdentity, Checkpoint

COMPONENTS = ("unet", *TEXT_ENCODERS)
"""The parts of a pipeline that a checkpoint may contain, each in a folder of its name."""
BASE_REFERENCE = "base_model.json"
"""The file of an exported adapter that names its base model."""

ADAPTER = "checkpoint"
"""The name of a loaded adapter in its pipeline."""

_IS_DEEPSPEED_AVAILABLE = accelerate_unwrapping.is_deepspeed_available
_LOCAL_KEYS = ("_name_or_path",)
_DTYPE_KEYS = ("dtype", "torch_dtype")
_HALF_DTYPES = ("bfloat16", "float16")
_TEXT_STACK = "text_model."


# ---- write --------------------------------------------------------------------------------------


def write_networks(parts: Mapping[str, nn.Module], folder: Path) -> None:
    """Write each network to the folder of its name, for `from_pretrained`."""
    with _without_deepspeed():
        for name, model in parts.items():
            saved: Any = model
            saved.save_pretrained(folder / name, safe_serialization=True)
            make_portable(folder / name)


def write_pipeline(pipe: Any, folder: Path) -> None:
    """Write a whole pipeline, for its `from_pretrained`."""
    with _without_deepspeed():
        pipe.save_pretrained(folder, safe_serialization=True)
    make_portable(folder)


@contextlib.contextmanager
def _without_deepspeed() -> Iterator[None]:
    """Keep accelerate from importing DeepSpeed, and MLflow with it, which takes 1.8 s.

    transformers lets accelerate unwrap a network, and accelerate imports DeepSpeed to recognize its
    wrapper. The networks here are not wrapped.
    """
    accelerate_unwrapping.is_deepspeed_available = lambda: False
    try:
        yield
    finally:
        accelerate_unwrapping.is_deepspeed_available = _IS_DEEPSPEED_AVAILABLE


def make_portable(folder: Path) -> None:
    """Remove machine paths from the JSON files below `folder`, and name fp32 as the type to load.

    diffusers loads networks in fp32 unless told otherwise, but transformers in the type that the
    config names: half of a pipeline whose text encoder says bf16 would not fit the other half.
    """
    for path in sorted(folder.rglob("*.json")):
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            continue
        portable = {k: v for k, v in value.items() if k not in _LOCAL_KEYS}
        portable |= {k: "float32" for k in _DTYPE_KEYS if portable.get(k) in _HALF_DTYPES}
        if portable != value:
            files.write_json(path, portable)


# ---- swap ---------------------------------------------------------------------------------------


def verify_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Raise CorruptRecordError unless every file of the checkpoint has the recorded sha256."""
    wrong = files.mismatches(folder, checkpoint.files)
    if wrong or files.digest_of(checkpoint.files) != checkpoint.sha256:
        raise CorruptRecordError(
            f"{checkpoint.name} differs from its record",
            got=f"missing or changed: {', '.join(wrong) or 'the record itself'}",
            hint=repeat_hint(folder / checkpoint.name, delete=True),
        )


@contextlib.contextmanager
def applied(
    pipe: Pipeline, checkpoint_dir: Path, checkpoint: Checkpoint | None
) -> Iterator[Pipeline]:
    """Yield the pipeline with a checkpoint's weights, then restore its own bit by bit.

    None is the base model; `checkpoint_dir` is not read then. The weights are copied into the
    memory of the base model's, so bits do not depend on the order of checkpoints. Raises
    CorruptRecordError if files or shapes are wrong.
    """
    if checkpoint is None:
        yield pipe
        return
    verify_checkpoint(checkpoint_dir, checkpoint)
    if checkpoint.method == "lora":
        with _applied_lora(pipe, checkpoint_dir):
            yield pipe
        return
    models = {component: getattr(pipe, component) for component in _components_of(checkpoint)}
    own = {c: {k: v.clone() for k, v in m.state_dict().items()} for c, m in models.items()}
    try:
        for component, model in models.items():
            copy_weights(model, checkpoint_dir / component)
        yield pipe
    finally:
        for component, model in models.items():
            model.load_state_dict(own[component])


@contextlib.contextmanager
def _applied_lora(pipe: Pipeline, folder: Path) -> Iterator[None]:
    _load_adapter(pipe, folder)
    try:
        yield
    finally:
        pipe.unload_lora_weights()


def _load_adapter(pipe: Pipeline, folder: Path) -> None:
    pipe.load_lora_weights(str(folder), weight_name=lora.LORA_FILE, adapter_name=ADAPTER)
    for part in (pipe.unet, *text_encoders_of(pipe).values()):
        part.eval()  # a new adapter's dropout is in training mode


def _components_of(checkpoint: Checkpoint) -> list[str]:
    folders = {name.split("/")[0] for name in checkpoint.files}
    return [component for component in COMPONENTS if component in folders]


def copy_weights(model: torch.nn.Module, folder: Path) -> None:
    """Copy saved weights into the model's own memory. Raises CorruptRecordError."""
    weights: dict[str, torch.Tensor] = {}
    for name in source.matching_files(folder, ("*.safetensors",)):
        weights |= read_tensors(folder / name)
    own = model.state_dict()
    weights = {name_in(own, name): tensor for name, tensor in weights.items()}
    wrong = sorted(set(weights) ^ set(own))
    wrong += sorted(k for k in set(weights) & set(own) if weights[k].shape != own[k].shape)
    if wrong:
        raise CorruptRecordError(
            f"the weights in {folder} do not fit the base model",
            got=f"{len(wrong)} names or shapes, first {wrong[0]}",
            hint="the base model has changed since then; train again",
        )
    model.load_state_dict(weights)


def name_in(own: Collection[str], name: str) -> str:
    """A saved weight's name in the model. Some library versions prefix the names of text encoders,
    others do not."""
    other = name.removeprefix(_TEXT_STACK) if name.startswith(_TEXT_STACK) else _TEXT_STACK + name
    return other if name not in own and other in own else name


# ---- export -------------------------------------------------------------------------------------


def export_pipeline(
    settings: BaseModelSettings,
    root: Path,
    *,
    identity: BaseModelIdentity,
    checkpoint_dir: Path,
    checkpoint: Checkpoint,
    out: Path,
) -> None:
    """Write the final pipeline of a run into the new folder `out`.

    A full fine-tune becomes a folder for the pipeline's `from_pretrained`. LoRA becomes the
    adapters in diffusers' and kohya's formats and `base_model.json`. Raises CorruptRecordError if
    the checkpoint differs from its record.
    """
    verify_checkpoint(checkpoint_dir, checkpoint)
    with files.atomic_dir(out) as aside:
        if checkpoint.method == "lora":
            _export_adapter(settings, identity, checkpoint_dir, aside)
        else:
            _export_full(settings, root, checkpoint_dir, checkpoint, aside)


def _export_adapter(
    settings: BaseModelSettings, identity: BaseModelIdentity, checkpoint_dir: Path, out: Path
) -> None:
    files.write_bytes(out / lora.LORA_FILE, (checkpoint_dir / lora.LORA_FILE).read_bytes())
    lora.write_kohya(checkpoint_dir, out=out / lora.KOHYA_FILE)
    reference = {**settings.model_dump(mode="json"), "identity": identity.to_json()}
    files.write_json(out / BASE_REFERENCE, reference)


def _export_full(
    settings: BaseModelSettings,
    root: Path,
    checkpoint_dir: Path,
    checkpoint: Checkpoint,
    out: Path,
) -> None:
    pipe = load.load_pipeline(settings, root, device=torch.device("cpu"))
    for component in _components_of(checkpoint):
        copy_weights(getattr(pipe, component), checkpoint_dir / component)
    write_pipeline(pipe, out)


def load_exported(
    folder: Path,
    root: Path,
    *,
    device: torch.device,
    hash_cache: Path,
    dtype: torch.dtype = torch.float32,
) -> Pipeline:
    """Load the pipeline that `export_pipeline` wrote into `folder`, ready to sample.

    `root` is the workspace to search for an adapter's base model. Raises SettingsError if the base
    model is unavailable, and CorruptRecordError if the adapter was trained on another one.
    """
    if not (folder / BASE_REFERENCE).is_file():
        return load.load_pipeline_folder(folder, device=device, dtype=dtype)
    reference = json.loads((folder / BASE_REFERENCE).read_bytes())
    trained_on = BaseModelIdentity.model_validate(reference.pop("identity"))
    settings = BaseModelSettings.model_validate(reference)
    found = load.resolve_base_model(settings, root, hash_cache=hash_cache)
    if found.sha256 != trained_on.sha256:
        raise CorruptRecordError(
            f"the base model {found.name} is not the one that the adapter was trained on",
            got=f"sha256 {found.sha256}",
            allowed=f"sha256 {trained_on.sha256}, revision {trained_on.revision}",
        )
    pipe = load.load_pipeline(settings, root, device=device, dtype=dtype)
    _load_adapter(pipe, folder)
    return pipe
