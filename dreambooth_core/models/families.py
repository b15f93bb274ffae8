"""Model families: kinds of pipelines, recognized by their configs. Torch-free.

A family names the parts of a pipeline; other differences are read from the parts themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dreambooth_core.errors import SettingsError
from dreambooth_core.models import source

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

Pipeline: TypeAlias = "StableDiffusionPipeline | StableDiffusionXLPipeline"
"""A pipeline of any supported family."""

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""The names of all text encoders that a family may have, in the pipeline's order."""


@dataclass(frozen=True)
class Family:
    """A kind of pipeline: its class, the options to load it, and its text parts in order."""

    name: Literal["sd", "sdxl"]
    class_name: str
    options: dict[str, Any]
    text_encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    conditioning: str | None
    """The U-Net's added conditioning: `addition_embed_type` of its config."""

    @property
    def pipeline_class(self) -> type[Pipeline]:
        """The class of diffusers."""
        import diffusers

        return getattr(diffusers, self.class_name)


_SD = Family(
    name="sd",
    class_name="StableDiffusionPipeline",
    options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    text_encoders=TEXT_ENCODERS[:1],
    tokenizers=("tokenizer",),
    conditioning=None,
)
_SDXL = Family(
    name="sdxl",
    class_name="StableDiffusionXLPipeline",
    options={"add_watermarker": False},
    text_encoders=TEXT_ENCODERS,
    tokenizers=("tokenizer", "tokenizer_2"),
    conditioning="text_time",
)
_LIBRARIES = ([None], ["diffusers"], ["transformers"], ["stable_diffusion"])
"""Where the parts of a pipeline may come from; the last is that of safety checkers."""
_BETAS = ("beta_start", "beta_end", "beta_schedule")
"""The keys of DDPM's noise in a scheduler's config, unless it lists its `trained_betas`."""
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_BY_CLASS = {family.class_name: family for family in (_SD, _SDXL)}


def pipeline_family(folder: Path) -> Family:
    """The family of the pipeline in a folder. Raises SettingsError if it is not supported.

    The class in `model_index.json` decides, and the configs of the U-Net and the scheduler must
    agree with it: inpainting models have the same classes but other inputs, and models trained by
    EDM or flow matching have the same classes but another objective.
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
            f"{folder.name} is a kind of pipeline that cannot be trained here",
            got=class_name,
            allowed=", ".join(sorted(_BY_CLASS)),
        )
    _refuse_code(folder, index)
    parts = (*family.text_encoders, *family.tokenizers)
    if missing := [name for name in parts if index.get(name) in (None, [None, None])]:
        raise SettingsError(f"{folder.name} lacks {' and '.join(missing)}")
    _require_unet(folder, family)
    _require_ddpm_noise(folder, index)
    return family


def _refuse_code(folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline with a part whose class is a program in the model's own folder."""
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    own = [f"{name}: {entry}" for name, entry in entries.items() if entry[:1] not in _LIBRARIES]
    if own:
        raise SettingsError(
            f"{folder.name} brings its own program code, which never runs here",
            got=", ".join(own),
            allowed="parts of diffusers and transformers",
            hint="save the pipeline with their classes, or take another base model",
        )


def _require_unet(folder: Path, family: Family) -> None:
    """Require a U-Net that takes only the VAE's latents and the family's conditioning."""
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


def _require_ddpm_noise(folder: Path, index: Mapping[str, Any]) -> None:
    """Require a network that was trained on DDPM's noise, as the loss here does.

    Any sampler for that noise is fine. The configs are checked because DDPMScheduler loads any of
    them, and fills in betas that another objective does not have.
    """
    config = source.read_json_file(
        folder / "scheduler" / "scheduler_config.json", what="a saved scheduler"
    )
    entry = index.get("scheduler")
    named = entry[-1] if isinstance(entry, list) and entry else None
    classes = list(dict.fromkeys(str(name) for name in (named, config.get("_class_name")) if name))
    objective = _other_objective(classes, config)
    if objective is not None:
        raise SettingsError(
            f"{folder.name} was trained for another objective than the one here: {objective}",
            got=f"scheduler {' and '.join(classes) or 'of no class'}",
            allowed=f"a scheduler of DDPM's noise, whose config has {', '.join(_BETAS)} and a "
            f"prediction_type of {', '.join(_PREDICTIONS)}",
            hint="take a base model of that kind: Stable Diffusion 1.x and 2.x, SDXL, and models "
            "fine-tuned from them",
        )


def _other_objective(classes: Sequence[str], config: Mapping[str, Any]) -> str | None:
    """The name of a scheduler's objective if it is not DDPM's, else None."""
    if any("EDM" in name for name in classes):
        return "EDM"
    prediction = config.get("prediction_type", "epsilon")
    if (
        any("FlowMatch" in name for name in classes)
        or config.get("use_flow_sigmas")
        or prediction == "flow_prediction"
    ):
        return "flow matching"
    if prediction not in _PREDICTIONS:
        return f"prediction_type {prediction}"
    missing = [name for name in _BETAS if config.get(name) is None]
    if missing and config.get("trained_betas") is None:
        return f"the scheduler's config has no {', '.join(missing)}"
    return None


def native_side(pipe: Pipeline) -> int:
    """The side in pixels of the images that a pipeline was trained on."""
    return pipe.unet.config["sample_size"] * pipe.vae_scale_factor


def text_encoders_of(pipe: Any) -> dict[str, Any]:
    """The text encoders of a loaded pipeline by name, in the pipeline's order."""
    found = {name: getattr(pipe, name, None) for name in TEXT_ENCODERS}
    return {name: model for name, model in found.items() if model is not None}
