"""The latent cache: VAE moments of every view and text embeddings, addressed by content.

What an image becomes depends on its pixels, the VAE's weights and the transform; the sha256 over
those is the name of its file in the content store. So nothing stale can be found, and what two
subjects or two settings share is made once.
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
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_core import files
from dreambooth_core.config import DataSettings
from dreambooth_core.data import transform
from dreambooth_core.errors import CorruptRecordError, DataError, StageError, Stopped
from dreambooth_core.models.tensors import eval_mode, tensor_bytes
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import BaseModelIdentity, CachedImage, LatentCache, Manifest

TEXT_FILE = "text.safetensors"
MOMENTS = "moments"

_KEY_VERSION = 1
_TRANSFORM = ("resolution", "center_crop", "crops_per_image", "random_flip")


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images of one role: their manifest, the folder it speaks of, and their prompt."""

    manifest: Manifest
    folder: Path
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The frozen parts of the base model; `text_encoder` is None when it is trained too."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel | None
    tokenizer: CLIPTokenizer
    identity: BaseModelIdentity


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
    """Encode what the content store does not hold yet, and write the cache into the folder `out`.

    Raises CorruptRecordError when an image is not what its manifest says, StageError when the VAE
    gives a number that is not finite, Stopped between two images.
    """
    encode = _Encoder(encoders.vae, settings=settings, store=MomentStore(content_store))
    entries = [(one, entry) for one in image_sets for entry in one.manifest.images]
    cached: list[CachedImage] = []
    hashes: dict[str, str] = {}
    for image_set, entry in entries:
        if should_stop():
            raise Stopped("the cache was asked to stop", hint="run it again to continue")
        key, data = encode(image_set.folder / entry.file, sha256=entry.sha256)
        name = f"{MOMENTS}/{key}.safetensors"
        files.write_bytes(out / name, data)
        hashes[name] = files.sha256_bytes(data)
        cached.append(
            CachedImage(
                image=entry.file,
                role=image_set.manifest.role,
                prompt=image_set.prompt,
                file=name,
                num_views=len(safetensors.torch.load(data)["mean"]),
            )
        )
        progress(len(cached), len(entries))
    text_file = _write_text(image_sets, encoders, out=out, hashes=hashes)
    record = LatentCache(
        fingerprint=fingerprint,
        base_model=encoders.identity,
        resolution=settings.resolution,
        latent_scale=float(encoders.vae.config["scaling_factor"]),
        images=tuple(cached),
        text_file=text_file,
        files=hashes,
        warnings=warnings,
    )
    record.write(out)
    return record


def _write_text(
    image_sets: Sequence[ImageSet], encoders: Encoders, *, out: Path, hashes: dict[str, str]
) -> str | None:
    """Write the prompts' embeddings, unless the text encoder will change with the training."""
    if encoders.text_encoder is None:
        return None
    prompts = sorted({one.prompt for one in image_sets})
    embeddings = embed_prompts(
        prompts, text_encoder=encoders.text_encoder, tokenizer=encoders.tokenizer
    )
    data = tensor_bytes(embeddings)
    files.write_bytes(out / TEXT_FILE, data)
    hashes[TEXT_FILE] = files.sha256_bytes(data)
    return TEXT_FILE


class _Encoder:
    """Gives an image's moments file: from the store, or made and stored."""

    def __init__(self, vae: AutoencoderKL, *, settings: DataSettings, store: MomentStore) -> None:
        self._vae, self._settings, self._store = vae, settings, store
        self._vae_sha256 = weights_sha256(vae)

    def __call__(self, path: Path, *, sha256: str) -> tuple[str, bytes]:
        key = moments_key(sha256, vae_sha256=self._vae_sha256, settings=self._settings)
        data = self._store.find(key)
        if data is None:
            moments = encode_image(path, sha256=sha256, vae=self._vae, settings=self._settings)
            data = self._store.add(key, moments)
        return key, data


# ---- images -------------------------------------------------------------------------------------


def moments_key(image_sha256: str, *, vae_sha256: str, settings: DataSettings) -> str:
    """The address of an image's moments: sha256 over pixels, weights, transform and arithmetic."""
    transform = {name: getattr(settings, name) for name in _TRANSFORM}
    return files.digest_of([_KEY_VERSION, image_sha256, vae_sha256, transform])


def weights_sha256(model: torch.nn.Module) -> str:
    """sha256 over a model's weights and what else decides its bits: type, device, threads."""
    first = next(model.parameters())
    arithmetic = [str(first.dtype), first.device.type, torch.get_num_threads()]
    tensors = {
        name: files.sha256_bytes(tensor.detach().cpu().contiguous().numpy().tobytes())
        for name, tensor in model.state_dict().items()
    }
    return files.digest_of([arithmetic, tensors])


def encode_image(
    path: Path, *, sha256: str, vae: AutoencoderKL, settings: DataSettings
) -> dict[str, torch.Tensor]:
    """Mean and log-variance of the VAE's posterior for every view, fp32 [V, C, h, w].

    Views go through one at a time, so that how many there are changes no bits. Raises
    CorruptRecordError when the file is not the one recorded, StageError on a non-finite number.
    """
    if not path.is_file() or files.sha256_file(path) != sha256:
        raise CorruptRecordError(
            f"{path.name} is not the image that its manifest lists",
            hint="run the stage that makes it again",
        )
    with Image.open(path) as opened:
        views = transform.tensors_of(opened.convert("RGB"), settings, sha256=sha256)
    means, logvars = [], []
    with eval_mode(vae), torch.inference_mode():
        for view in views:
            encoded: Any = vae.encode(view[None].to(vae.device, vae.dtype))
            posterior = encoded.latent_dist
            means.append(posterior.mean[0].float().cpu())
            logvars.append(posterior.logvar[0].float().cpu())
    moments = {"mean": torch.stack(means), "logvar": torch.stack(logvars)}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in moments.values()):
        raise StageError(
            f"the VAE gives numbers that are not finite for {path.name}",
            hint="the base model's VAE may not work in half precision",
        )
    return moments


class MomentStore:
    """Moments by address, each file with its own sha256 beside it, written after it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> bytes | None:
        """The stored file, or None where it is missing, half-written or damaged."""
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


def prompt_key(prompt: str) -> str:
    """The name of a prompt's embedding in the text file."""
    return files.sha256_bytes(prompt.encode())


def embed_prompts(
    prompts: Sequence[str], *, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> dict[str, torch.Tensor]:
    """The text encoder's last hidden state of each prompt, fp32 [L, D], by `prompt_key`.

    As the pipeline embeds a prompt: padded to the tokenizer's length, without an attention mask.
    Raises DataError for a prompt that is too long to be seen whole.
    """
    embeddings = {}
    with eval_mode(text_encoder), torch.inference_mode():
        for prompt in prompts:
            ids = _token_ids(prompt, tokenizer).to(text_encoder.device)
            hidden = text_encoder(ids).last_hidden_state
            embeddings[prompt_key(prompt)] = hidden[0].float().cpu()
    return embeddings


def _token_ids(prompt: str, tokenizer: CLIPTokenizer) -> torch.Tensor:
    limit = tokenizer.model_max_length
    num_tokens = len(tokenizer(prompt).input_ids)
    if num_tokens > limit:
        raise DataError(
            f"the prompt {prompt!r} does not fit the text encoder",
            got=f"{num_tokens} tokens",
            allowed=f"{limit} tokens",
            hint="shorten the subject's identifier or class_noun",
        )
    return tokenizer(prompt, padding="max_length", max_length=limit, return_tensors="pt").input_ids
