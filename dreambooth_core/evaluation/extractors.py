"""The scorers' backbones: images or texts in, unit-length features out, weights hashed.

Legend: N images or texts, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from dreambooth_core import files
from dreambooth_core.errors import SettingsError
from dreambooth_core.evaluation.scorer_files import Role, check_scorer_files, scorer_folder
from dreambooth_core.models.source import MODEL_PATTERNS
from dreambooth_core.models.tensors import LOADING_ERRORS, eval_mode
from dreambooth_core.numerics.similarity import Floats, unit_rows
from dreambooth_core.records import ScorerIdentity

_BATCH = 32  # fixed: the batch size can change the last bits of a feature
_WITH_POOLER = ("vit", "deit")


@dataclass(frozen=True, kw_only=True)
class ClipScorer:
    """CLIP's image and text towers with their projections: CLIP-T and CLIP-I."""

    identity: ScorerIdentity
    model: Any  # a CLIPModel, whose outputs the library does not type
    processor: Any
    tokenizer: Any

    def images(self, images: Sequence[Image.Image]) -> Floats:
        """Projected image features (N, D) of unit length."""

        def features(batch: Sequence[Image.Image]) -> torch.Tensor:
            pixels_BCHW = _pixels(self.processor, batch).to(self.model.device)
            return self.model.get_image_features(pixel_values=pixels_BCHW).pooler_output

        return _in_batches(self.model, images, features)

    def texts(self, texts: Sequence[str]) -> Floats:
        """Projected text features (N, D) of unit length, from texts cut to the context length."""

        def features(batch: Sequence[str]) -> torch.Tensor:
            tokens = self.tokenizer(
                list(batch),
                padding="max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self.model.device)
            output = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            return output.pooler_output

        return _in_batches(self.model, texts, features)


@dataclass(frozen=True, kw_only=True)
class DinoScorer:
    """A self-supervised ViT: DINO, PRES, and from its patches DIV and copies of photos.

    The feature is the class token after the last layer norm, as in the DreamBooth paper (ViT-S/16
    DINO), or, where `pooled`, what a trained linear pooler makes of it.
    """

    identity: ScorerIdentity
    model: Any
    processor: Any
    pooled: bool

    def images(self, images: Sequence[Image.Image]) -> Floats:
        """Features (N, D) of unit length."""
        return self.images_and_patches(images)[0]

    def images_and_patches(self, images: Sequence[Image.Image]) -> tuple[Floats, Floats]:
        """Features (N, D) of the images and (N, L, D) of their L patches, all of unit length."""
        patches: list[torch.Tensor] = []
        others = 1 + getattr(self.model.config, "num_register_tokens", 0)

        def features(batch: Sequence[Image.Image]) -> torch.Tensor:
            pixels_BCHW = _pixels(self.processor, batch).to(self.model.device)
            output = self.model(pixel_values=pixels_BCHW)
            patches.append(output.last_hidden_state[:, others:].float().cpu())
            return output.pooler_output if self.pooled else output.last_hidden_state[:, 0]

        whole_ND = _in_batches(self.model, images, features)
        return whole_ND, unit_rows(torch.cat(patches).numpy())


def load_clip(name: str, *, root: Path, device: torch.device) -> ClipScorer:
    """Load a CLIPModel in float32. Raises SettingsError if it is missing, partial or not a CLIP."""
    folder = _folder_of("clip", name, root=root)
    model = _load(CLIPModel, folder, name=name)
    return ClipScorer(
        identity=_identity("clip", name, folder=folder),
        model=model.to(device),
        processor=AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        ),
        tokenizer=AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ),
    )


def load_dino(name: str, *, root: Path, device: torch.device) -> DinoScorer:
    """Load a ViT with a class token in float32. Raises SettingsError if that is impossible."""
    folder = _folder_of("dino", name, root=root)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # By default a ViT has a tanh pooler, which DINO's weights lack, so it would be random. A linear
    # pooler is trained to compute the feature.
    pooled = config.model_type in _WITH_POOLER and config.pooler_act == "linear"
    extra = {"add_pooling_layer": pooled} if config.model_type in _WITH_POOLER else {}
    return DinoScorer(
        identity=_identity("dino", name, folder=folder),
        model=_load(AutoModel, folder, name=name, **extra).to(device),
        processor=AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        ),
        pooled=pooled,
    )


def _in_batches(model: torch.nn.Module, items: Sequence[Any], features: Any) -> Floats:
    with eval_mode(model), torch.inference_mode():
        parts = [
            features(items[start : start + _BATCH]).float().cpu()
            for start in range(0, len(items), _BATCH)
        ]
    return unit_rows(torch.cat(parts).numpy())


def _pixels(processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    rgb = [image.convert("RGB") for image in images]
    return processor(images=rgb, return_tensors="pt")["pixel_values"]


def _folder_of(role: Role, name: str, *, root: Path) -> Path:
    """The folder of a scorer, or the snapshot of a hub id. Raises SettingsError."""
    folder = scorer_folder(role, name, root) or _from_hub(role, name)
    check_scorer_files(role, name, folder)
    return folder


def _from_hub(role: Role, name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_PATTERNS)))
    except Exception as error:
        # The hub's client raises a dozen types; each means that the scorer is not available.
        raise SettingsError(
            "the scorer is neither a folder here nor available from the hub",
            key=f"evaluate.{role}",
            got=f"{name} ({type(error).__name__})",
            allowed="a folder, a hub id in the local cache, or a hub id and a network",
        ) from error


def _load(cls: Any, folder: Path, *, name: str, **extra: object) -> torch.nn.Module:
    try:
        model, info = cls.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **extra,
        )
    except LOADING_ERRORS as error:
        raise SettingsError(
            "a scorer's weights cannot be read", got=f"{name} ({error})", allowed="safetensors only"
        ) from None
    if info["missing_keys"]:
        raise SettingsError(
            "a scorer's weights are not complete, so part of it would be random",
            got=f"{name} lacks {', '.join(sorted(info['missing_keys'])[:3])}",
        )
    return model


def _identity(role: str, name: str, *, folder: Path) -> ScorerIdentity:
    """The backbone's name without local paths, and a hash of everything behind its features."""
    parts = {
        path.name: files.sha256_file(path) for glob in MODEL_PATTERNS for path in folder.glob(glob)
    }
    backbone = Path(name).name if Path(name).is_absolute() else name
    return ScorerIdentity(name=role, backbone=backbone, sha256=files.digest_of(parts))
