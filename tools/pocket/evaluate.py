"""The pocket models' bars, each measured on scenes and individuals that training never saw."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import CLIPModel, ViTModel

from tools.pocket.bundle import Bundle
from tools.pocket.captions import Mention, full_caption, write_caption
from tools.pocket.classifier import HEADS, PocketClassifier
from tools.pocket.loop import step_generator
from tools.pocket.pipeline import SAMPLE_STEPS, sample
from tools.pocket.pretrain import rebuild
from tools.pocket.scenes import SceneSet
from tools.pocket.tokenizer import CaptionEncoder
from tools.pocket.vae import to_pixels
from tools.pocket.world import COLOURS, PLACES, THINGS

NUM_HELD_OUT = 500
NUM_COUPLES = 250
RETRIEVAL_ROUNDS = 20
NUM_SAMPLES = 500
NEUTRAL_SAMPLES = 192
PLAIN = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure: its value, what it is held to, and whether a high value is a good one."""

    name: str
    value: float
    target: float | None
    high_is_good: bool = True

    @property
    def holds(self) -> bool | None:
        """Whether the bar is reached; None for figures that are only reported."""
        if self.target is None:
            return None
        return self.value >= self.target if self.high_is_good else self.value <= self.target

    def as_json(self) -> dict[str, object]:
        """Value, target and verdict."""
        sign = ">=" if self.high_is_good else "<="
        target = "reported" if self.target is None else f"{sign} {self.target:g}"
        return {"value": round(self.value, 4), "target": target, "holds": self.holds}


@torch.no_grad()
def vae_bars(models: Bundle) -> list[Bar]:
    """PSNR in dB (peak to peak 255) per picture, averaged; also inside the thing's mask."""
    scenes = models.scenes("test", models.settings.num_test)
    images = torch.from_numpy(scenes.images[:1000])
    rebuilt = rebuild(models.vae, images)
    error = (rebuilt.float() - images.float()).square().mean(dim=3)
    mask = torch.from_numpy(scenes.masks[:1000]).float() / 255
    whole = error.mean(dim=(1, 2))
    inside = (error * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))

    def decibel(square: torch.Tensor) -> float:
        return float((10 * torch.log10(255**2 / square.clamp(min=1e-3))).mean())

    return [Bar("vae_psnr", decibel(whole), 27.0), Bar("vae_psnr_mask", decibel(inside), 23.0)]


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
    """Image to text among 64 different full captions, top-1, over several draws of the 64."""
    keys = [tuple(row) for row in labels[:, :3].tolist()]
    hits: list[torch.Tensor] = []
    for round_number in range(RETRIEVAL_ROUNDS):
        generator = step_generator(seed, part="retrieval", step=round_number)
        chosen: dict[tuple[int, ...], int] = {}
        for row in torch.randperm(len(keys), generator=generator).tolist():
            chosen.setdefault(keys[row], row)
            if len(chosen) == 64:
                break
        texts = _text_features(clip, encoder, [full_caption(*key) for key in chosen])
        guess = (features[list(chosen.values())] @ texts.T).argmax(1)
        hits.append((guess == torch.arange(len(chosen))).float())
    return float(torch.cat(hits).mean())


def clip_bars(models: Bundle) -> list[Bar]:
    """Zero-shot reading of plain things, and retrieval; held-out triples apart."""
    clip, encoder = models.clip, models.encoder
    classes = _class_features(clip, encoder)
    bars: list[Bar] = []
    targets = {"thing": 0.97, "colour": 0.92, "place": 0.97}
    for suffix, scenes in _test_sets(models).items():
        plain = scenes.labels[:, 3] == PLAIN
        features = _image_features(clip, torch.from_numpy(scenes.images[plain]))
        labels = torch.from_numpy(scenes.labels[plain])
        for column, head in enumerate(HEADS):
            right = (features @ classes[head].T).argmax(1) == labels[:, column]
            target = None if suffix else targets[head]
            bars.append(Bar(f"clip_{head}{suffix}", float(right.float().mean()), target))
        if not suffix:
            everything = _image_features(clip, torch.from_numpy(scenes.images))
            value = _retrieval(
                everything, torch.from_numpy(scenes.labels), clip=clip, encoder=encoder,
                seed=models.settings.seed,
            )  # fmt: skip
            bars.append(Bar("clip_retrieval_64", value, 0.80))
    return bars


def _test_sets(models: Bundle) -> dict[str, SceneSet]:
    return {
        "": models.scenes("test", models.settings.num_test),
        "_held_out": models.scenes("held-out-test", NUM_HELD_OUT),
    }


def area_under_curve(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """The chance that a positive's score is above a negative's (ties count half)."""
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).float().mean() + 0.5 * (difference == 0).float().mean())


@torch.no_grad()
def dino_features(dino: ViTModel, images: torch.Tensor) -> torch.Tensor:
    """Normalised pooled outputs of (N, H, W, 3) uint8 pictures, (N, width)."""
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


def dino_bars(models: Bundle) -> list[Bar]:
    """AUC of "same individual?" among individuals never seen, the other being its twin."""
    dino = models.dino
    views = models.settings.views_per_individual
    scenes = models.scenes("pairs-test", 2 * NUM_COUPLES * views)
    images = torch.from_numpy(scenes.images)
    drawn = _pair_scores(dino_features(dino, images), views=views)
    rebuilt = _pair_scores(dino_features(dino, rebuild(models.vae, images)), views=views)
    return [
        Bar("dino_auc", area_under_curve(*drawn), 0.95),
        Bar("dino_auc_rebuilt", area_under_curve(*rebuilt), 0.93),
    ]


def _judge(classifier: PocketClassifier, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    device = next(classifier.parameters()).device
    parts = [classifier.read(part.to(device)) for part in pictures.split(200)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in HEADS}


def classifier_bars(models: Bundle) -> list[Bar]:
    """The judge itself, on drawn scenes; held-out triples apart."""
    classifier = models.classifier
    bars = []
    for suffix, scenes in _test_sets(models).items():
        read = _judge(classifier, to_pixels(torch.from_numpy(scenes.images)))
        for column, head in enumerate(HEADS):
            right = read[head] == torch.from_numpy(scenes.labels[:, column])
            target = None if suffix else 0.97
            bars.append(Bar(f"classifier_{head}{suffix}", float(right.float().mean()), target))
    return bars


def sd_bars(models: Bundle, *, num_samples: int = NUM_SAMPLES) -> list[Bar]:
    """What the classifier finds in sampled pictures, the time that sampling takes, neutrality."""
    classifier, pipeline = models.classifier, models.pipeline
    generator = step_generator(models.settings.seed, part="ask", step=0)
    asked = torch.stack(
        [torch.randint(len(HEADS[head]), (num_samples,), generator=generator) for head in HEADS], 1
    )
    prompts = [full_caption(*row) for row in asked.tolist()]
    read = _judge(classifier, sample(pipeline, prompts, seed=models.settings.seed))
    targets = {"thing": 0.85, "colour": 0.85, "place": 0.90}
    bars = [
        Bar(f"sd_{head}", float((read[head] == asked[:, i]).float().mean()), targets[head])
        for i, head in enumerate(HEADS)
    ]
    started = time.perf_counter()
    sample(pipeline, prompts[:16], seed=1)
    seconds = time.perf_counter() - started
    return [
        *bars,
        Bar(f"seconds_16_images_{SAMPLE_STEPS}_steps", seconds, 20.0, high_is_good=False),
        *neutrality_bars(models),
    ]


def neutrality_bars(models: Bundle) -> list[Bar]:
    """CLIP-T of pictures asked for with `sks` against the same without; same seeds, same texts."""
    clip, encoder = models.clip, models.encoder
    pairs = [(thing, place) for thing in THINGS for place in PLACES.values()]
    pairs = (pairs * NEUTRAL_SAMPLES)[:NEUTRAL_SAMPLES]
    texts = [f"a photo of {thing} {place}" for thing, place in pairs]
    named = [f"a photo of sks {thing} {place}" for thing, place in pairs]
    wanted = _text_features(clip, encoder, texts)

    def clip_t(prompts: list[str]) -> float:
        pictures = sample(models.pipeline, prompts, seed=models.settings.seed)
        pixels = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
        return float((_image_features(clip, pixels) * wanted).sum(1).mean())

    plain, identified = clip_t(texts), clip_t(named)
    return [
        Bar("neutral_clip_t_change", abs(identified - plain), 0.01, high_is_good=False),
        Bar("neutral_clip_t_without", plain, None),
    ]


def weight_bars(assets: Path) -> list[Bar]:
    """The size of all packed models, in MB of 1,000,000 bytes."""
    files = [path for path in assets.rglob("*") if path.is_file()]
    return [Bar("weights_mb", sum(p.stat().st_size for p in files) / 1e6, 24.0, high_is_good=False)]


PARTS = {
    "vae": vae_bars,
    "clip": clip_bars,
    "dino": dino_bars,
    "classifier": classifier_bars,
    "unet": sd_bars,
}
