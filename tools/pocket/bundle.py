"""The four pocket models side by side, as packed or as they stand in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPModel, ViTModel

from tools.pocket.classifier import PocketClassifier, load_classifier
from tools.pocket.pipeline import build_pipeline
from tools.pocket.pretrain import Workshop
from tools.pocket.scenes import SceneSet
from tools.pocket.settings import PocketSettings
from tools.pocket.tokenizer import CaptionEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """What is measured; `scenes` gives the first `count` scenes of a stream."""

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


def from_state(shop: Workshop) -> Bundle:
    """The models as their training stands."""
    dino, classifier = shop.trained("dino"), shop.trained("classifier")
    assert isinstance(dino, ViTModel)
    assert isinstance(classifier, PocketClassifier)
    return Bundle(
        settings=shop.settings,
        pipeline=build_pipeline(shop),
        clip=shop.clip(),
        dino=dino,
        classifier=classifier,
        scenes=shop.scenes,
    )


def from_assets(shop: Workshop, *, assets: Path) -> Bundle:
    """The packed models, in fp32; `shop` gives the device and keeps the scenes that are drawn."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        assets / "pocket-sd", dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    # typed Any: the libraries annotate `to` for other uses
    clip: Any = CLIPModel.from_pretrained(assets / "pocket-clip", dtype=torch.float32)
    dino: Any = ViTModel.from_pretrained(assets / "pocket-dino", dtype=torch.float32)
    return Bundle(
        settings=shop.settings,
        pipeline=pipeline.to(shop.device),
        clip=clip.to(shop.device).eval(),
        dino=dino.to(shop.device).eval(),
        classifier=load_classifier(assets / "pocket-classifier").to(shop.device),
        scenes=shop.scenes,
    )
