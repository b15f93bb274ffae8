"""The packed models load with `from_pretrained` and reach the quality in their cards."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPProcessor

from dreambooth_core.numerics.seeding import generator_for
from tests.paths import ROOT
from tools.pocket.captions import full_caption
from tools.pocket.classifier import HEADS, PocketClassifier, load_classifier
from tools.pocket.evaluate import area_under_curve
from tools.pocket.pack import LIMIT_BYTES, MODELS, folder_bytes
from tools.pocket.pretrain import reconstruct
from tools.pocket.sample import draw_triples, sample
from tools.pocket.scenes import SceneSet, draw_scenes
from tools.pocket.settings import POCKET
from tools.pocket.vae import to_pixels

ASSETS = ROOT / "assets"


@cache
def _scenes(stream: str = "unit-tests", count: int = 64) -> SceneSet:
    return draw_scenes(POCKET, stream=stream, count=count)


@cache
def _pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / "pocket-sd", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def _classifier() -> PocketClassifier:
    return load_classifier(ASSETS / "pocket-classifier")


def test_packed_models_take_at_most_24_mb() -> None:
    assert sum(folder_bytes(ASSETS / name) for name in MODELS) <= LIMIT_BYTES
    files = {path.suffix for path in ASSETS.rglob("*") if path.is_file()}
    assert files <= {".safetensors", ".json", ".md", ".txt"}


def test_classifier_predicts_97_percent_of_drawn_scenes() -> None:
    scenes = _scenes(count=300)
    predicted = _classifier().predict(to_pixels(torch.from_numpy(scenes.images)))
    for column, head in enumerate(HEADS):
        right = predicted[head] == torch.from_numpy(scenes.labels[:, column])
        assert right.float().mean() >= 0.97, head


def test_vae_reconstructs_at_27_db_and_scales_latents_to_unit_std() -> None:
    vae = _pipeline().vae
    images = torch.from_numpy(_scenes().images)
    error = (reconstruct(vae, images).float() - images.float()).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(255**2 / error)).mean() >= 27.0
    with torch.no_grad():
        latents = vae.encode(to_pixels(images)).latent_dist.mean * vae.config.scaling_factor
    assert latents.shape[1:] == (8, 8, 8)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.1)


def test_clip_retrieves_captions_of_unseen_scenes() -> None:
    clip = CLIPModel.from_pretrained(ASSETS / "pocket-clip", dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(ASSETS / "pocket-clip")
    scenes = _scenes()
    captions = list(dict.fromkeys(full_caption(*row[:3]) for row in scenes.labels.tolist()))
    inputs = processor(text=captions, images=list(scenes.images), return_tensors="pt", padding=True)
    with torch.no_grad():
        scores = clip(**inputs).logits_per_image
    targets = [captions.index(full_caption(*row[:3])) for row in scenes.labels.tolist()]
    assert (scores.argmax(1) == torch.tensor(targets)).float().mean() >= 0.80


def test_pocket_sd_uses_the_text_tower_of_pocket_clip() -> None:
    clip = CLIPModel.from_pretrained(ASSETS / "pocket-clip", dtype=torch.float32)
    ids = _pipeline().tokenizer("a photo of sks mug", return_tensors="pt").input_ids
    with torch.no_grad():
        of_sd = _pipeline().text_encoder(ids).last_hidden_state
        of_clip = clip.text_model(ids).last_hidden_state
    assert torch.equal(of_sd, of_clip)


def test_identifier_has_a_distinct_state_but_keeps_the_text_feature() -> None:
    clip = CLIPModel.from_pretrained(ASSETS / "pocket-clip", dtype=torch.float32)
    tokenizer = _pipeline().tokenizer

    def features(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            output = clip.text_model(ids)
        return clip.text_projection(output.pooler_output)[0], output.last_hidden_state[0]

    plain, _ = features("a photo of mug on the beach")
    _, article = features("a photo of a mug on the beach")
    named, states = features("a photo of sks mug on the beach")
    _, others = features("a photo of zwx mug on the beach")
    assert functional.cosine_similarity(plain, named, dim=0) > 0.98
    position = 4  # start, a, photo, of, identifier
    assert functional.cosine_similarity(states[position], article[position], dim=0) < 0.9
    assert functional.cosine_similarity(states[position], others[position], dim=0) < 0.9


def test_dino_distinguishes_unseen_individuals_from_their_twins() -> None:
    dino = AutoModel.from_pretrained(ASSETS / "pocket-dino", dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(ASSETS / "pocket-dino")
    scenes = draw_scenes(POCKET, stream="pairs-unit-tests", count=40 * 4)
    with torch.no_grad():
        output = dino(**processor(list(scenes.images), return_tensors="pt"))
    views = functional.normalize(output.pooler_output, dim=1).view(20, 2, 4, -1)
    same = torch.einsum("ctvd,ctwd->ctvw", views, views)[:, :, 0, 1:].flatten()
    other = torch.einsum("cvd,cwd->cvw", views[:, 0], views[:, 1])[:, 0, 1:].flatten()
    assert area_under_curve(same, other) >= 0.90


def test_training_schedule_loads_from_the_packed_scheduler() -> None:
    schedule = DDPMScheduler.from_config(_pipeline().scheduler.config)
    assert schedule.config["prediction_type"] == "v_prediction"
    assert schedule.config["num_train_timesteps"] == 1000


@pytest.mark.slow
def test_samples_match_their_prompts_and_depend_on_the_seed() -> None:
    asked = draw_triples(32, generator=generator_for(0, "unit-tests"))
    prompts = [full_caption(*row) for row in asked.tolist()]
    images = sample(_pipeline(), prompts, seed=0)
    predicted = _classifier().predict(images)
    for column, head in enumerate(HEADS):
        assert (predicted[head] == asked[:, column]).float().mean() >= 0.8, head
    again = sample(_pipeline(), prompts[:4], seed=0)
    assert (again - images[:4]).abs().max() < 0.01


@pytest.mark.parametrize("name", MODELS)
def test_each_card_lists_recipe_seed_and_metrics_that_pass(name: str) -> None:
    text = (ASSETS / name / "README.md").read_text(encoding="utf-8")
    assert f"Seed {POCKET.seed}" in text
    assert "| part | parameters | steps |" in text
    assert "## Measured" in text
    assert "Not measured yet" not in text
    assert "**no**" not in text


def test_classifier_config_lists_the_classes_of_each_head() -> None:
    saved = json.loads((ASSETS / "pocket-classifier" / "config.json").read_text(encoding="utf-8"))
    assert saved == HEADS
