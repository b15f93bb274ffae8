"""The latent cache: VAE moments of every view and text embeddings, addressed by content.

An image's moments depend on its pixels, the VAE (weights and config), the transform and the
arithmetic. The sha256 of all that names its file in the content store, so entries are never stale,
and subjects or settings share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer

from dreambooth_core import files
from dreambooth_core.config import DataSettings
from dreambooth_core.data import transform
from dreambooth_core.data.loss_weights import LossWeights
from dreambooth_core.errors import CorruptRecordError, StageError, Stopped, repeat_hint
from dreambooth_core.models.subject_finder import SubjectFinder
from dreambooth_core.models.tensors import eval_mode, tensor_bytes
from dreambooth_core.models.text import encode, token_ids
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import (
    BaseModelIdentity,
    CachedImage,
    LatentCache,
    Manifest,
    ManifestImage,
)

TEXT_FILE = "text.safetensors"
MOMENTS = "moments"

_KEY_VERSION = 3
_TRANSFORM = ("resolution", "center_crop", "crops_per_image", "random_flip")


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images of one role: manifest, folder, and the prompt of images without a caption."""

    manifest: Manifest
    folder: Path
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The encoders of the base model: VAE, and text encoders with tokenizers in order.

    `masks_text`: whether the text encoders take the attention mask. `finder` finds the subject in
    photos, for data.masks: auto.
    """

    vae: AutoencoderKL
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[CLIPTokenizer, ...]
    identity: BaseModelIdentity
    masks_text: bool = False
    finder: SubjectFinder | None = None


def build_cache(  # noqa: PLR0913 - the stage's inputs, all named
    image_sets: Sequence[ImageSet],
    *,
    encoders: Encoders,
    settings: DataSettings,
    content_store: Path,
    out: Path,
    fingerprint: str,
    warnings: tuple[str, ...] = (),
    should_stop: StopSignal = never_stop,
    progress: Progress = no_progress,
) -> LatentCache:
    """Encode the images that the content store lacks, and write the cache into `out`.

    Raises CorruptRecordError if an image differs from its manifest, StageError if the VAE returns
    a non-finite number, and Stopped between two images.
    """
    encode = MomentEncoder(encoders.vae, settings=settings, store=MomentStore(content_store))
    entries = [(one, entry) for one in image_sets for entry in one.manifest.images]
    cached: list[CachedImage] = []
    hashes: dict[str, str] = {}
    weights = LossWeights(settings, encoders.finder)
    for image_set, entry in entries:
        if should_stop():
            raise Stopped("caching stopped", hint="run the same command again to continue")
        key, data = encode(image_set.folder / entry.file, sha256=entry.sha256)
        name = f"{MOMENTS}/{key}.safetensors"
        files.write_bytes(out / name, data)
        hashes[name] = files.sha256_bytes(data)
        moments = safetensors.torch.load(data)
        if image_set.manifest.role == "instance":
            weights.add(image_set.folder, entry, moments)
        cached.append(
            CachedImage(
                image=entry.file,
                role=image_set.manifest.role,
                prompt=entry.caption or image_set.prompt,
                file=name,
                num_views=len(moments["mean"]),
                instance_prompt=_instance_prompt(image_set, entry, settings),
            )
        )
        progress(len(cached), len(entries))
    weighted = weights.write(out)
    hashes |= weighted
    hashes[TEXT_FILE] = _write_text(cached, encoders, out=out)
    record = LatentCache(
        fingerprint=fingerprint,
        base_model=encoders.identity,
        resolution=settings.resolution,
        latent_scale=float(encoders.vae.config["scaling_factor"]),
        images=tuple(cached),
        text_file=TEXT_FILE,
        files=hashes,
        warnings=warnings,
        weights_file=next(iter(weighted), None),
        caption_rate=settings.caption_rate if settings.caption_rate < 1 else None,
    )
    record.write(out)
    return record


def _instance_prompt(
    image_set: ImageSet, entry: ManifestImage, settings: DataSettings
) -> str | None:
    """What rows without the image's caption are trained on, if there are any."""
    return image_set.prompt if entry.caption and settings.caption_rate < 1 else None


def _write_text(images: Sequence[CachedImage], encoders: Encoders, *, out: Path) -> str:
    """Write the embeddings of the images' prompts; returns the file's sha256."""
    prompts = {image.prompt for image in images}
    prompts |= {image.instance_prompt for image in images if image.instance_prompt}
    data = tensor_bytes(embed_prompts(sorted(prompts), encoders))
    files.write_bytes(out / TEXT_FILE, data)
    return files.sha256_bytes(data)


class MomentEncoder:
    """Returns an image's moments, from the store or from the VAE."""

    def __init__(self, vae: AutoencoderKL, *, settings: DataSettings, store: MomentStore) -> None:
        self._vae, self._settings, self._store = vae, settings, store
        self._vae_sha256 = model_sha256(vae)

    def __call__(self, path: Path, *, sha256: str) -> tuple[str, bytes]:
        """The address of an image's moments, and their file."""
        key = moments_key(sha256, vae_sha256=self._vae_sha256, settings=self._settings)
        data = self._store.find(key)
        if data is None:
            moments = encode_image(path, sha256=sha256, vae=self._vae, settings=self._settings)
            data = self._store.add(key, moments)
        return key, data


# ---- images -------------------------------------------------------------------------------------


def moments_key(image_sha256: str, *, vae_sha256: str, settings: DataSettings) -> str:
    """The address of an image's moments: sha256 of pixels, VAE, transform and arithmetic."""
    transform = {name: getattr(settings, name) for name in _TRANSFORM}
    return files.digest_of([_KEY_VERSION, image_sha256, vae_sha256, transform])


def model_sha256(model: AutoencoderKL) -> str:
    """sha256 of a model's weights, config and arithmetic.

    Private entries of the config, such as `_name_or_path`, do not count.
    """
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    tensors = {
        name: files.sha256_bytes(tensor.detach().cpu().contiguous().numpy().tobytes())
        for name, tensor in model.state_dict().items()
    }
    return files.digest_of([arithmetic_of(model), config, tensors])


def arithmetic_of(model: nn.Module) -> list[str | int]:
    """Everything that changes the bits of a sum: dtype, device, threads, deterministic kernels."""
    first = next(model.parameters())
    kernels = torch.are_deterministic_algorithms_enabled()
    return [str(first.dtype), first.device.type, torch.get_num_threads(), kernels]


def encode_image(
    path: Path, *, sha256: str, vae: AutoencoderKL, settings: DataSettings
) -> dict[str, torch.Tensor]:
    """Mean and log-variance of the VAE's posterior for every view, fp32 [V, C, h, w], and `size`
    [V, 4]: height and width of the picture, top and left of the crop, in pixels.

    The VAE encodes one view at a time, so the number of views does not change bits. Raises
    CorruptRecordError if the file differs from its hash, and StageError for a non-finite number.
    """
    if not path.is_file() or files.sha256_file(path) != sha256:
        raise CorruptRecordError(
            f"{path.name} differs from the image in its manifest",
            hint=repeat_hint(path, delete=True),
        )
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
        views = transform.tensors_of(picture, settings, sha256=sha256)
        sizes = transform.sizes_of(picture, settings, sha256=sha256)
    means, logvars = [], []
    with eval_mode(vae), torch.inference_mode():
        for view in views:
            encoded: Any = vae.encode(view[None].to(vae.device, vae.dtype))
            posterior = encoded.latent_dist
            means.append(posterior.mean[0].float().cpu())
            logvars.append(posterior.logvar[0].float().cpu())
    moments = {"mean": torch.stack(means), "logvar": torch.stack(logvars), "size": sizes}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in moments.values()):
        raise StageError(
            f"the VAE returns non-finite numbers for {path.name}",
            hint="the base model's VAE may not work in half precision",
        )
    return moments


class MomentStore:
    """Moments by address; a second file, written last, holds the sha256 of the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> bytes | None:
        """The stored file, or None if it is missing, incomplete or damaged."""
        try:
            data = self._file(key).read_bytes()
            return data if files.sha256_bytes(data) == self._seal(key).read_text() else None
        except OSError:
            return None

    def add(self, key: str, moments: Mapping[str, torch.Tensor]) -> bytes:
        """Store the moments; returns the file's bytes."""
        data = tensor_bytes(moments)
        files.write_bytes(self._file(key), data)
        files.write_text(self._seal(key), files.sha256_bytes(data))
        return data

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"

    def _seal(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.sha256"


# ---- prompts ------------------------------------------------------------------------------------


def prompt_key(prompt: str, what: str) -> str:
    """The name of one of a prompt's tensors in the text file."""
    return f"{files.sha256_bytes(prompt.encode())}.{what}"


def embed_prompts(prompts: Sequence[str], encoders: Encoders) -> dict[str, torch.Tensor]:
    """The tensors of each prompt, by `prompt_key`: `ids` [E, L], `hidden` fp32 [L, D] and, where
    the base model has them, `pooled` fp32 [P].

    Token ids stand there for a training of the text encoders, embeddings for one without. Raises
    DataError for a prompt that is too long to be seen whole.
    """
    tensors: dict[str, torch.Tensor] = {}
    with eval_mode(*encoders.text_encoders), torch.inference_mode():
        for prompt in prompts:
            ids_EL = token_ids(prompt, encoders.tokenizers)
            text = encode(
                encoders.text_encoders,
                ids_EL[:, None].to(encoders.vae.device),
                masked=encoders.masks_text,
            )
            tensors[prompt_key(prompt, "ids")] = ids_EL
            tensors[prompt_key(prompt, "hidden")] = text.text_BLD[0].float().cpu()
            if text.pooled_BP is not None:
                tensors[prompt_key(prompt, "pooled")] = text.pooled_BP[0].float().cpu()
    return tensors
