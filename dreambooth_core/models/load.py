"""Loading base models: the whole pipeline or one component, from a hub id or a folder.

Only safetensors are loaded, and code in a model's repository never runs.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from dreambooth_core.config import BaseModelSettings, ComputeSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import prompts, source
from dreambooth_core.models.families import Pipeline, pipeline_family, text_encoders_of
from dreambooth_core.models.source import ModelSource
from dreambooth_core.models.tensors import LOADING_ERRORS
from dreambooth_core.records import BaseModelIdentity

Component = Literal["unet", "vae", "scheduler"]

_Model = TypeVar("_Model", bound=torch.nn.Module)


def configure_torch(compute: ComputeSettings) -> None:
    """Set threads and determinism for this process. Both change bits, so both are settings."""
    torch.set_num_threads(compute.num_threads)
    torch.use_deterministic_algorithms(compute.deterministic, warn_only=False)
    torch.backends.cudnn.benchmark = False
    if compute.deterministic:
        # cuBLAS is deterministic only with a workspace of fixed size.
        # The library reads it only from the environment.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # noqa: TID251


def pick_device(compute: ComputeSettings) -> torch.device:
    """The device to compute on. Raises SettingsError if a GPU is required but missing."""
    if compute.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if compute.device == "cuda":
        raise SettingsError(
            "cuda, but torch finds no GPU on this machine",
            key="compute.device",
            got=f"torch {torch.__version__}",
            hint="set compute.device to auto or cpu",
        )
    return torch.device("cpu")


def named_device(device: str | torch.device) -> torch.device:
    """The device of this name. Raises SettingsError if this machine cannot compute on it."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SettingsError(
            f"device {device!r} cannot be used here",
            got=str(error).splitlines()[0],
            allowed="cpu, or cuda on a machine with a GPU",
        ) from None
    return found


def device_name(device: torch.device) -> str:
    """What people call a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def find_base_model(settings: BaseModelSettings, root: Path) -> ModelSource:
    """The base model's folder on this machine. Raises SettingsError."""
    return source.find_model(
        settings.pretrained_model_name_or_path,
        root,
        revision=settings.revision,
        variant=settings.variant,
        patterns=source.PIPELINE_PATTERNS,
    )


def resolve_base_model(
    settings: BaseModelSettings, root: Path, *, hash_cache: Path
) -> BaseModelIdentity:
    """The exact base model of the settings: name, hub commit and sha256 of its content.

    `hash_cache` is a file that caches the hashes of unchanged files. Raises SettingsError.
    """
    found = find_base_model(settings, root)
    pipeline_family(found.folder)
    source.check_pipeline(found.folder, settings.variant)
    sha256 = source.content_sha256(
        found.folder,
        patterns=source.PIPELINE_PATTERNS,
        variant=settings.variant,
        hash_cache=hash_cache,
    )
    name = Path(settings.pretrained_model_name_or_path)
    shown = name.name if name.is_absolute() else name.as_posix()  # records hold no machine paths
    return BaseModelIdentity(name=shown, revision=found.commit, sha256=sha256)


def sampler_name(settings: BaseModelSettings, root: Path) -> str:
    """The class of the pipeline's own sampler, such as DPMSolverMultistepScheduler."""
    folder = find_base_model(settings, root).folder
    index = source.read_json_file(folder / "model_index.json", what="a saved pipeline")
    entry = index.get("scheduler")
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 else "unknown"


def load_pipeline(
    settings: BaseModelSettings,
    root: Path,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Pipeline:
    """Load the pipeline to `device`, in evaluation mode, silent. Raises SettingsError."""
    folder = find_base_model(settings, root).folder
    return load_pipeline_folder(folder, device=device, dtype=dtype, variant=settings.variant)


def load_pipeline_folder(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
) -> Pipeline:
    """Load the pipeline saved in `folder`, like `load_pipeline`."""
    family = pipeline_family(folder)
    source.check_pipeline(folder, variant)
    _silence_loading_bars()
    try:
        pipe = family.pipeline_class.from_pretrained(
            folder,
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            **family.options,
        )
    except LOADING_ERRORS as error:
        raise source.unusable(folder, error) from error
    pipe.set_progress_bar_config(disable=True)
    for name, part in {"unet": pipe.unet, "vae": pipe.vae, **text_encoders_of(pipe)}.items():
        setattr(pipe, name, _settle(part, device))
    return pipe


@overload
def load_component(
    name: Literal["unet"], settings: BaseModelSettings, root: Path, *,
    device: torch.device, dtype: torch.dtype = ...,
) -> UNet2DConditionModel: ...  # fmt: skip
@overload
def load_component(
    name: Literal["vae"], settings: BaseModelSettings, root: Path, *,
    device: torch.device, dtype: torch.dtype = ...,
) -> AutoencoderKL: ...  # fmt: skip
@overload
def load_component(
    name: Literal["scheduler"], settings: BaseModelSettings, root: Path
) -> DDPMScheduler: ...
def load_component(
    name: Component,
    settings: BaseModelSettings,
    root: Path,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Load one part of the base model, in evaluation mode.

    "scheduler" is the DDPM noise schedule of the training, whichever sampler the pipeline has.
    Raises SettingsError.
    """
    folder = find_base_model(settings, root).folder
    pipeline_family(folder)
    if name == "scheduler":
        return _opened(DDPMScheduler, folder / name)
    return _load_model(_MODEL_CLASSES[name], folder / name, settings, device=device, dtype=dtype)


_MODEL_CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


def load_text_encoders(
    settings: BaseModelSettings,
    root: Path,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.nn.Module]:
    """Load the base model's text encoders by name, in the pipeline's order.

    Raises SettingsError.
    """
    folder = find_base_model(settings, root).folder
    return {
        name: _load_model(_MODEL_CLASSES[name], folder / name, settings, device=device, dtype=dtype)
        for name in pipeline_family(folder).text_encoders
    }


def empty_networks(folder: Path, *, with_text: bool) -> dict[str, torch.nn.Module]:
    """U-Net and text encoders of the pipeline in `folder`, built from configs without weights.

    They have all layers but take no time and no memory.
    """
    names = pipeline_family(folder).text_encoders if with_text else ()
    config = source.read_json_file(folder / "unet" / "config.json", what="a saved U-Net")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        text = {n: _MODEL_CLASSES[n](CLIPTextConfig.from_pretrained(folder / n)) for n in names}
    assert isinstance(unet, torch.nn.Module)
    return {"unet": unet, **text}


def load_tokenizers(settings: BaseModelSettings, root: Path) -> tuple[CLIPTokenizer, ...]:
    """Load the tokenizers of the text encoders, in order. Raises SettingsError."""
    folder = find_base_model(settings, root).folder
    pipeline_family(folder)
    return tuple(prompts.tokenizers_in(folder))


def _load_model(
    model_class: Any,
    part: Path,
    settings: BaseModelSettings,
    *,
    device: torch.device | None,
    dtype: torch.dtype,
) -> Any:
    source.require_weights(part, settings.variant)
    variant = source.variant_in(part, settings.variant)
    model = _opened(model_class, part, dtype=dtype, variant=variant, use_safetensors=True)
    return _settle(cast(torch.nn.Module, model), device or torch.device("cpu"))


def _opened(cls: Any, part: Path, **options: Any) -> Any:
    """`cls.from_pretrained` on a local folder. Raises SettingsError."""
    _silence_loading_bars()
    try:
        return cls.from_pretrained(part, local_files_only=True, **options)
    except LOADING_ERRORS as error:
        raise source.unusable(part, error) from error


def free_memory(device: torch.device) -> None:
    """Free the memory of deleted networks, which contain reference cycles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _silence_loading_bars() -> None:
    """Hide the libraries' progress bars, which would break the display of the stage's own."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _settle(model: _Model, device: torch.device) -> _Model:
    """Move a model to `device`, in evaluation mode, with its weights copied.

    Memory-mapped weights are aligned differently from allocated ones, which changes the last bits
    that kernels compute. With copies, the bits do not depend on how a model was loaded.
    """
    model.eval().to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.preserve_format)
    return model
