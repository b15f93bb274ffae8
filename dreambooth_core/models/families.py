"""Kinds of pipelines, told apart by their own configs: the only place that decides.

A family says which parts a pipeline has; what else differs is read from the parts themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from dreambooth_core.errors import SettingsError
from dreambooth_core.models import source

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline
"""What draws pictures here."""

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""Names of all text encoders that a family may have, in the order in which they are read."""


@dataclass(frozen=True)
class Family:
    """A kind of pipeline: its class, what that must be told, and its text parts in order."""

    name: Literal["sd", "sdxl"]
    pipeline_class: type[Pipeline]
    options: dict[str, Any]
    text_encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    conditioning: str | None
    """What the U-Net takes besides the text: its config's `addition_embed_type`."""


_SD = Family(
    name="sd",
    pipeline_class=StableDiffusionPipeline,
    options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    text_encoders=TEXT_ENCODERS[:1],
    tokenizers=("tokenizer",),
    conditioning=None,
)
_SDXL = Family(
    name="sdxl",
    pipeline_class=StableDiffusionXLPipeline,
    options={"add_watermarker": False},
    text_encoders=TEXT_ENCODERS,
    tokenizers=("tokenizer", "tokenizer_2"),
    conditioning="text_time",
)
_BY_CLASS = {family.pipeline_class.__name__: family for family in (_SD, _SDXL)}


def pipeline_family(folder: Path) -> Family:
    """Which kind of pipeline a folder holds. Raises SettingsError for one that is not trained here.

    The class of `model_index.json` decides, and the U-Net's config must agree with it: inpainting
    models and SDXL's refiner have the same classes and other inputs.
    """
    index = source.read_json_file(folder / "model_index.json", what="a saved pipeline")
    class_name = str(index.get("_class_name"))
    if class_name.startswith("Flax"):
        raise SettingsError(
            f"{folder.name} holds Flax weights (*.msgpack), which diffusers no longer reads",
            got=class_name,
            hint="name the torch weights of the same model (CompVis/stable-diffusion-v1-4), or "
            "convert these once with diffusers<0.40 (docs/how-to-tpu.md)",
        )
    family = _BY_CLASS.get(class_name)
    if family is None:
        raise SettingsError(
            f"{folder.name} is a pipeline of a kind that cannot be trained here",
            got=class_name,
            allowed=", ".join(sorted(_BY_CLASS)),
        )
    parts = (*family.text_encoders, *family.tokenizers)
    if missing := [name for name in parts if index.get(name) in (None, [None, None])]:
        raise SettingsError(f"{folder.name} lacks {' and '.join(missing)}")
    _require_unet(folder, family)
    return family


def _require_unet(folder: Path, family: Family) -> None:
    """The U-Net takes the VAE's latents and nothing beside them but the family's conditioning."""
    unet = source.read_json_file(folder / "unet" / "config.json", what="a saved U-Net")
    vae = source.read_json_file(folder / "vae" / "config.json", what="a saved VAE")
    found = (unet.get("in_channels"), unet.get("addition_embed_type"))
    expected = (vae.get("latent_channels"), family.conditioning)
    if found != expected:
        raise SettingsError(
            f"the U-Net of {folder.name} takes other inputs than text-to-image models do",
            got=f"in_channels {found[0]}, addition_embed_type {found[1]}",
            allowed=f"in_channels {expected[0]}, addition_embed_type {expected[1]}",
            hint="take the text-to-image model, not its inpainting, depth or refiner variant",
        )
    if vae.get("latents_mean") is not None:
        raise SettingsError(
            f"the VAE of {folder.name} shifts its latents, which no family here does",
            got=f"latents_mean {vae['latents_mean']}",
            allowed="latents_mean null: latents are scaled only",
        )


def native_side(pipe: Pipeline) -> int:
    """The side in pixels of the pictures that a pipeline was made for."""
    return pipe.unet.config["sample_size"] * pipe.vae_scale_factor


def text_encoders_of(pipe: Any) -> dict[str, Any]:
    """The text encoders of a loaded pipeline by name, in the order in which they are read."""
    found = {name: getattr(pipe, name, None) for name in TEXT_ENCODERS}
    return {name: model for name, model in found.items() if model is not None}
