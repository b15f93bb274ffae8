"""Metrics of the pocket models on scenes and individuals outside the training set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import CLIPModel, ViTModel

from dreambooth_core.numerics.seeding import generator_for
from tools.pocket.captions import Mention, full_caption, write_caption
from tools.pocket.classifier import HEADS, PocketClassifier
from tools.pocket.models import PocketModels
from tools.pocket.pretrain import reconstruct
from tools.pocket.sample import SAMPLE_STEPS, draw_triples, sample
from tools.pocket.scenes import SceneSet
from tools.pocket.tokenizer import CaptionEncoder
from tools.pocket.vae import to_pixels
from tools.pocket.world import COLOURS, PLACES, THINGS

NUM_HELD_OUT = 500
NUM_COUPLES = 250
RETRIEVAL_ROUNDS = 20
NEUTRAL_SAMPLES = 192
PLAIN = 0


@dataclass(frozen=True, slots=True)
class Metric:
    """A value and its target, a lower bound unless `higher_is_better` is false."""

    name: str
    value: float
    target: float | None
    higher_is_better: bool = True

    @property
    def passes(self) -> bool | None:
        """Whether the value meets the target; None without a target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.higher_is_better else self.value <= self.target

    def as_json(self) -> dict[str, object]:
        """Value, target and result, as in `assets/measured.json`."""
        sign = ">=" if self.higher_is_better else "<="
        target = "reported" if self.target is None else f"{sign} {self.target:g}"
        return {"value": round(self.value, 4), "target": target, "holds": self.passes}


@torch.no_grad()
def vae_metrics(models: PocketModels) -> list[Metric]:
    """Mean PSNR in dB (peak 255) of reconstructions, whole and inside the thing's mask."""
    scenes = models.scenes("test", models.settings.num_test)
    images = torch.from_numpy(scenes.images[:1000])
    reconstructed = reconstruct(models.vae, images)
    error = (reconstructed.float() - images.float()).square().mean(dim=3)
    mask = torch.from_numpy(scenes.masks[:1000]).float() / 255
    whole = error.mean(dim=(1, 2))
    inside = (error * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))

    def decibel(square: torch.Tensor) -> float:
        return float((10 * torch.log10(255**2 / square.clamp(min=1e-3))).mean())

    return [
        Metric("vae_psnr", decibel(whole), 27.0),
        Metric("vae_psnr_mask", decibel(inside), 23.0),
    ]


@torch.no_grad()
def _image_features(clip: CLIPModel, images: torch.Tensor) -> torch.Tensor:
    device = next(clip.parameters()).device
    rows = [
        clip.visual_projection(
            clip.vision_model(pixel_values=to_pixels(part).to(device)).pooler_output
        ).cpu()
        for part in images.split(200)
    ]
    return functional.normalize(torch.cat(rows), dim=1)


@torch.no_grad()
def _text_features(clip: CLIPModel, encoder: CaptionEncoder, captions: list[str]) -> torch.Tensor:
    device = next(clip.parameters()).device
    pooled = clip.text_model(encoder(captions).to(device)).pooler_output
    return functional.normalize(clip.text_projection(pooled).cpu(), dim=1)


def _class_features(clip: CLIPModel, encoder: CaptionEncoder) -> dict[str, torch.Tensor]:
    """One text feature per class and head; colours and places are averaged over the things."""

    def mean_over_things(colour: int | None, place: int | None) -> torch.Tensor:
        captions = [
            write_caption(Mention(thing, colour, place), prefix="a photo of", article="a")
            for thing in range(len(THINGS))
        ]
        return _text_features(clip, encoder, captions).mean(0)

    things = [f"a photo of a {thing}" for thing in THINGS]
    return {
        "thing": _text_features(clip, encoder, things),
        "colour": torch.stack([mean_over_things(c, None) for c in range(len(COLOURS))]),
        "place": torch.stack([mean_over_things(None, p) for p in range(len(PLACES))]),
    }


def _retrieval(
    features: torch.Tensor, labels: torch.Tensor, *, clip: CLIPModel, encoder: CaptionEncoder,
    seed: int,
) -> float:  # fmt: skip
    """Top-1 accuracy of image-to-text retrieval among 64 captions, over several random draws."""
    keys = [tuple(row) for row in labels[:, :3].tolist()]
    hits: list[torch.Tensor] = []
    for round_number in range(RETRIEVAL_ROUNDS):
        generator = generator_for(seed, "retrieval", round_number)
        chosen: dict[tuple[int, ...], int] = {}
        for row in torch.randperm(len(keys), generator=generator).tolist():
            chosen.setdefault(keys[row], row)
            if len(chosen) == 64:
                break
        texts = _text_features(clip, encoder, [full_caption(*key) for key in chosen])
        guess = (features[list(chosen.values())] @ texts.T).argmax(1)
        hits.append((guess == torch.arange(len(chosen))).float())
    return float(torch.cat(hits).mean())


def clip_metrics(models: PocketModels) -> list[Metric]:
    """Zero-shot accuracy on plain things, and retrieval; held-out triples separately."""
    clip, encoder = models.clip, models.encoder
    classes = _class_features(clip, encoder)
    metrics: list[Metric] = []
    targets = {"thing": 0.97, "colour": 0.92, "place": 0.97}
    for suffix, scenes in _test_sets(models).items():
        plain = scenes.labels[:, 3] == PLAIN
        features = _image_features(clip, torch.from_numpy(scenes.images[plain]))
        labels = torch.from_numpy(scenes.labels[plain])
        for column, head in enumerate(HEADS):
            right = (features @ classes[head].T).argmax(1) == labels[:, column]
            target = None if suffix else targets[head]
            metrics.append(Metric(f"clip_{head}{suffix}", float(right.float().mean()), target))
        if not suffix:
            everything = _image_features(clip, torch.from_numpy(scenes.images))
            value = _retrieval(
                everything, torch.from_numpy(scenes.labels), clip=clip, encoder=encoder,
                seed=models.settings.seed,
            )  # fmt: skip
            metrics.append(Metric("clip_retrieval_64", value, 0.80))
    return metrics


def _test_sets(models: PocketModels) -> dict[str, SceneSet]:
    return {
        "": models.scenes("test", models.settings.num_test),
        "_held_out": models.scenes("held-out-test", NUM_HELD_OUT),
    }


def area_under_curve(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Probability that a positive scores above a negative; ties count half."""
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).float().mean() + 0.5 * (difference == 0).float().mean())


@torch.no_grad()
def dino_features(dino: ViTModel, images: torch.Tensor) -> torch.Tensor:
    """Normalised pooled outputs of (N, H, W, 3) uint8 images, (N, width)."""
    device = next(dino.parameters()).device
    rows = [dino(to_pixels(part).to(device)).pooler_output.cpu() for part in images.split(200)]
    return functional.normalize(torch.cat(rows), dim=1)


def _pair_scores(features: torch.Tensor, *, views: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of views of one individual, and of views of an individual and its twin."""
    couples = features.view(-1, 2, views, features.shape[1])
    same = torch.einsum("ctvd,ctwd->ctvw", couples, couples)
    upper = torch.triu_indices(views, views, offset=1)
    other = torch.einsum("cvd,cwd->cvw", couples[:, 0], couples[:, 1])
    different_views = ~torch.eye(views, dtype=torch.bool)
    return same[:, :, upper[0], upper[1]].flatten(), other[:, different_views].flatten()


def dino_metrics(models: PocketModels) -> list[Metric]:
    """AUC of telling an unseen individual from its twin, on drawings and on reconstructions."""
    dino = models.dino
    views = models.settings.views_per_individual
    scenes = models.scenes("pairs-test", 2 * NUM_COUPLES * views)
    images = torch.from_numpy(scenes.images)
    drawn = _pair_scores(dino_features(dino, images), views=views)
    reconstructed = _pair_scores(dino_features(dino, reconstruct(models.vae, images)), views=views)
    return [
        Metric("dino_auc", area_under_curve(*drawn), 0.95),
        Metric("dino_auc_rebuilt", area_under_curve(*reconstructed), 0.93),
    ]


def _classify(classifier: PocketClassifier, images: torch.Tensor) -> dict[str, torch.Tensor]:
    device = next(classifier.parameters()).device
    parts = [classifier.predict(part.to(device)) for part in images.split(200)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in HEADS}


def classifier_metrics(models: PocketModels) -> list[Metric]:
    """Accuracy of the classifier on drawn scenes; held-out triples separately."""
    classifier = models.classifier
    metrics = []
    for suffix, scenes in _test_sets(models).items():
        read = _classify(classifier, to_pixels(torch.from_numpy(scenes.images)))
        for column, head in enumerate(HEADS):
            right = read[head] == torch.from_numpy(scenes.labels[:, column])
            target = None if suffix else 0.97
            metrics.append(
                Metric(f"classifier_{head}{suffix}", float(right.float().mean()), target)
            )
    return metrics


def sd_metrics(models: PocketModels, *, num_samples: int) -> list[Metric]:
    """Accuracy of samples by the classifier, sampling time, effect of an identifier."""
    classifier, pipeline = models.classifier, models.pipeline
    asked = draw_triples(num_samples, generator=generator_for(models.settings.seed, "ask"))
    prompts = [full_caption(*row) for row in asked.tolist()]
    read = _classify(classifier, sample(pipeline, prompts, seed=models.settings.seed))
    targets = {"thing": 0.85, "colour": 0.85, "place": 0.90}
    metrics = [
        Metric(f"sd_{head}", float((read[head] == asked[:, i]).float().mean()), targets[head])
        for i, head in enumerate(HEADS)
    ]
    started = time.perf_counter()
    sample(pipeline, prompts[:16], seed=1)
    seconds = time.perf_counter() - started
    return [
        *metrics,
        Metric(f"seconds_16_images_{SAMPLE_STEPS}_steps", seconds, 20.0, higher_is_better=False),
        *neutrality_metrics(models),
    ]


def neutrality_metrics(models: PocketModels) -> list[Metric]:
    """Change of CLIP-T when the prompts contain `sks`, with the same seeds and texts."""
    clip, encoder = models.clip, models.encoder
    pairs = [(thing, place) for thing in THINGS for place in PLACES.values()]
    pairs = (pairs * NEUTRAL_SAMPLES)[:NEUTRAL_SAMPLES]
    texts = [f"a photo of {thing} {place}" for thing, place in pairs]
    named = [f"a photo of sks {thing} {place}" for thing, place in pairs]
    reference = _text_features(clip, encoder, texts)

    def clip_t(prompts: list[str]) -> float:
        images = sample(models.pipeline, prompts, seed=models.settings.seed)
        pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
        return float((_image_features(clip, pixels) * reference).sum(1).mean())

    plain, identified = clip_t(texts), clip_t(named)
    return [
        Metric("neutral_clip_t_change", abs(identified - plain), 0.01, higher_is_better=False),
        Metric("neutral_clip_t_without", plain, None),
    ]


def weight_metrics(assets: Path) -> list[Metric]:
    """Total size of the packed models in MB (1,000,000 bytes)."""
    files = [path for path in assets.rglob("*") if path.is_file()]
    return [
        Metric(
            "weights_mb", sum(p.stat().st_size for p in files) / 1e6, 24.0, higher_is_better=False
        )
    ]


PARTS = {
    "vae": vae_metrics,
    "clip": clip_metrics,
    "dino": dino_metrics,
    "classifier": classifier_metrics,
    "unet": sd_metrics,
}


def measure(
    models: PocketModels, *, part: str, assets: Path, num_samples: int, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Metrics of one part or of all, by name."""
    metrics: list[Metric] = []
    for name, compute in PARTS.items():
        if part not in ("all", name):
            continue
        log(f"evaluating {name}")
        metrics += compute(models, num_samples=num_samples) if name == "unet" else compute(models)
    if part == "all":
        metrics += weight_metrics(assets)
    return {metric.name: metric.as_json() for metric in metrics}


def as_table(measured: dict[str, dict[str, Any]]) -> str:
    """The metrics as aligned lines: name, value, target, result."""
    words = {True: "holds", False: "MISSED", None: ""}
    return "\n".join(
        f"{name:32} {metric['value']:>10.4f}   {metric['target']:12} {words[metric['holds']]}"
        for name, metric in measured.items()
    )
