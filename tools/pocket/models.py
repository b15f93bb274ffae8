"""The four pocket models together, from `assets/` or from the state folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPModel, ViTModel

from tools.pocket.classifier import PocketClassifier, load_classifier
from tools.pocket.pretrain import PretrainContext, load_latents
from tools.pocket.scenes import SceneSet
from tools.pocket.settings import PocketSettings
from tools.pocket.tokenizer import CaptionEncoder
from tools.pocket.unet import SCHEDULE


@dataclass(frozen=True, kw_only=True, slots=True)
class PocketModels:
    """All models under evaluation; `scenes` returns the first `count` scenes of a stream."""

    settings: PocketSettings
    pipeline: StableDiffusionPipeline
    clip: CLIPModel
    dino: ViTModel
    classifier: PocketClassifier
    scenes: Callable[[str, int], SceneSet]

    @property
    def vae(self) -> AutoencoderKL:
        """The VAE of the pipeline."""
        return self.pipeline.vae

    @property
    def encoder(self) -> CaptionEncoder:
        """Token ids of captions."""
        return CaptionEncoder(self.pipeline.tokenizer)


def load_from_state(context: PretrainContext) -> PocketModels:
    """The models at their last saved steps."""
    dino, classifier = context.averaged_model("dino"), context.averaged_model("classifier")
    assert isinstance(dino, ViTModel)
    assert isinstance(classifier, PocketClassifier)
    return PocketModels(
        settings=context.settings,
        pipeline=build_pipeline(context),
        clip=context.clip(),
        dino=dino,
        classifier=classifier,
        scenes=context.scenes,
    )


def load_packed(context: PretrainContext, *, assets: Path) -> PocketModels:
    """The packed models in fp32, on the context's device."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        assets / "pocket-sd", dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    # Any: the libraries' annotations of `to` do not fit this use.
    clip: Any = CLIPModel.from_pretrained(assets / "pocket-clip", dtype=torch.float32)
    dino: Any = ViTModel.from_pretrained(assets / "pocket-dino", dtype=torch.float32)
    return PocketModels(
        settings=context.settings,
        pipeline=pipeline.to(context.device),
        clip=clip.to(context.device).eval(),
        dino=dino.to(context.device).eval(),
        classifier=load_classifier(assets / "pocket-classifier").to(context.device),
        scenes=context.scenes,
    )


def build_pipeline(context: PretrainContext) -> StableDiffusionPipeline:
    """pocket-sd from the state folder, with DPM-Solver++ 2M on the training schedule."""
    vae, unet = context.averaged_model("vae"), context.averaged_model("unet")
    assert isinstance(vae, AutoencoderKL)
    assert isinstance(unet, UNet2DConditionModel)
    scenes = context.scenes("train", context.settings.num_train)
    vae.register_to_config(scaling_factor=load_latents(context, scenes)[1])
    scheduler: Any = DPMSolverMultistepScheduler(
        **SCHEDULE,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=context.clip().text_model,
        tokenizer=context.tokenizer(),
        unet=unet,
        scheduler=scheduler,
        **absent,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
