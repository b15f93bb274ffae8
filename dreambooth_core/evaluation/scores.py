"""The scores of one row: CLIP-T, CLIP-I, DINO, PRES, DIV (docs/scores.md has the formulas).

Legend: N generated images, M instance photos, K images of the class prompt, P prompts, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth_core import files
from dreambooth_core.evaluation.extractors import ClipScorer, DinoScorer
from dreambooth_core.evaluation.store import RowImages, Sampler, ScoreStore
from dreambooth_core.evaluation.suites import EvaluationPlan
from dreambooth_core.numerics.similarity import (
    Floats,
    cosines,
    mean_estimate,
    pair_estimate,
)
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import REAL, CheckpointScore, Harness, ImageScore, Interval


@dataclass(frozen=True, kw_only=True)
class References:
    """The instance photos' features, and the sha256 of the photos."""

    clip_MD: Floats
    dino_MD: Floats
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Resamples of every interval, and their seed: the same for all scores of all rows."""

    samples: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """All that the rows of one evaluation share; one per worker, made once."""

    plan: EvaluationPlan
    clip: ClipScorer
    dino: DinoScorer
    references: References
    store: ScoreStore
    bootstrap: Bootstrap

    @property
    def harness(self) -> Harness:
        """All that must be equal for two rows to be comparable."""
        plan = self.plan
        return Harness(
            suite=plan.suite,
            prompts=plan.prompts,
            class_prompt=plan.class_prompt,
            seeds=plan.seeds,
            class_seeds=plan.class_seeds,
            scorers={"clip": self.clip.identity, "dino": self.dino.identity},
            sampler=plan.sampler,
            steps=plan.steps,
            guidance=plan.guidance,
            resolution=plan.resolution,
            batch_size=plan.batch_size,
            instance_sha256=self.references.sha256,
        )


def make_references(photos: Sequence[Path], *, clip: ClipScorer, dino: DinoScorer) -> References:
    """Features of the accepted instance photos, in the manifest's order."""
    images = [open_image(path) for path in photos]
    return References(
        clip_MD=clip.images(images),
        dino_MD=dino.images(images),
        sha256=files.digest_of([files.sha256_file(path) for path in photos]),
    )


def open_image(path: Path) -> Image.Image:
    """One of the pipeline's own PNG files as RGB, read whole."""
    with Image.open(path) as image:
        return image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """Whose row it is: its name, its step, and the sha256 of the weights that make the images."""

    name: str
    step: int
    sha256: str

    @property
    def checkpoint_sha256(self) -> str | None:
        """The checkpoint's hash; the base model (step 0) is none."""
        return self.sha256 if self.step else None


@dataclass(frozen=True, kw_only=True)
class RowFeatures:
    """Features of unit length that a row is computed from."""

    clip_ND: Floats
    dino_ND: Floats
    class_dino_KD: Floats
    text_PD: Floats


def score_checkpoint(
    evaluator: Evaluator,
    *,
    model: ScoredModel,
    sampler: Sampler,
    progress: Progress = no_progress,
    should_stop: StopSignal = never_stop,
) -> CheckpointScore:
    """The row of one model: its images are made (or found in the store) and scored.

    `sampler` is called only for blocks of images that the store lacks, so weights may be swapped
    in on its first call. The base model is the one called `STEP_0`, with step 0 and the base
    model's sha256. Raises Stopped between blocks when `should_stop()`.
    """
    images = evaluator.store.images(
        evaluator.plan,
        model_sha256=model.sha256,
        sampler=sampler,
        progress=progress,
        should_stop=should_stop,
    )
    key = score_key(evaluator, model.sha256)
    row = evaluator.store.load_scores(key)
    if row is None:
        row = score_features(evaluator, model=model, features=_features(evaluator, images))
        evaluator.store.save_scores(key, row)
    own = {"name": model.name, "step": model.step, "checkpoint_sha256": model.checkpoint_sha256}
    return row.model_copy(update=own)


def score_key(evaluator: Evaluator, model_sha256: str) -> str:
    """Identity of a row: the model's weights and all that its scores depend on."""
    bootstrap = dataclasses.asdict(evaluator.bootstrap)
    return files.digest_of([model_sha256, evaluator.harness.to_json(), bootstrap])


def row_images(evaluator: Evaluator, model_sha256: str) -> RowImages:
    """The images of a row that was scored; raises RuntimeError when the store lacks some."""

    def nothing_left(prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image]:
        raise RuntimeError(f"the store lacks images of {prompts[0]!r}, seed {seeds[0]}")

    return evaluator.store.images(evaluator.plan, model_sha256=model_sha256, sampler=nothing_left)


def _features(evaluator: Evaluator, images: RowImages) -> RowFeatures:
    suite = [open_image(path) for path in images.suite]
    return RowFeatures(
        clip_ND=evaluator.clip.images(suite),
        dino_ND=evaluator.dino.images(suite),
        class_dino_KD=evaluator.dino.images([open_image(path) for path in images.class_prompt]),
        text_PD=evaluator.clip.texts(evaluator.plan.scored_texts),
    )


def score_features(
    evaluator: Evaluator, *, model: ScoredModel, features: RowFeatures
) -> CheckpointScore:
    """The row from its features; every number of docs/scores.md is computed here."""
    plan, references, bootstrap = evaluator.plan, evaluator.references, evaluator.bootstrap
    prompt_N, dino_ND = plan.prompt_indices, features.dino_ND
    clip_t_N, text_range = clip_t_of(cosines(features.clip_ND, features.text_PD), prompt_N)
    clip_i_N = cosines(features.clip_ND, references.clip_MD).mean(axis=1)
    dino_N = cosines(dino_ND, references.dino_MD).mean(axis=1)
    pres_K = cosines(features.class_dino_KD, references.dino_MD).mean(axis=1)
    suite = plan.requests[: plan.num_images]
    return CheckpointScore(
        name=model.name,
        step=model.step,
        checkpoint_sha256=model.checkpoint_sha256,
        images=tuple(
            ImageScore(prompt=prompt, seed=seed, clip_t=float(t), clip_i=float(i), dino=float(d))
            for (prompt, seed), t, i, d in zip(suite, clip_t_N, clip_i_N, dino_N, strict=True)
        ),
        n=plan.num_images,
        clip_t=_mean(clip_t_N, bootstrap),
        clip_i=_mean(clip_i_N, bootstrap),
        dino=_mean(dino_N, bootstrap),
        pres=_mean(pres_K, bootstrap),
        div=_pairs(1.0 - cosines(dino_ND, dino_ND), prompt_N, bootstrap),
        text_range=text_range,
    )


def clip_t_of(cosines_NP: Floats, prompt_N: Sequence[int]) -> tuple[Floats, float]:
    """CLIP-T of every image, and the text range: matched minus shuffled prompts, on average.

    Shuffled means every other prompt of the suite, which is the average over all shufflings.
    """
    count, num_prompts = cosines_NP.shape
    matched_N = cosines_NP[np.arange(count), np.asarray(prompt_N)]
    shuffled_N = (cosines_NP.sum(axis=1) - matched_N) / (num_prompts - 1)
    return matched_N, float((matched_N - shuffled_N).mean())


def score_real(evaluator: Evaluator) -> CheckpointScore:
    """The row of the instance photos against each other, never a photo with itself.

    It has no CLIP-T (photos have no prompt), PRES or DIV; with one photo it has no score at all.
    """
    references, bootstrap = evaluator.references, evaluator.bootstrap
    count = len(references.dino_MD)
    group_M = [0] * count
    return CheckpointScore(
        name=REAL,
        step=None,
        checkpoint_sha256=None,
        images=(),
        n=count,
        clip_t=None,
        clip_i=_pairs(cosines(references.clip_MD, references.clip_MD), group_M, bootstrap),
        dino=_pairs(cosines(references.dino_MD, references.dino_MD), group_M, bootstrap),
        pres=None,
        div=None,
        text_range=None,
    )


def _mean(values_N: Floats, bootstrap: Bootstrap) -> Interval:
    estimate = mean_estimate(values_N, samples=bootstrap.samples, seed=bootstrap.seed)
    return Interval(**estimate._asdict())


def _pairs(values_NN: Floats, group_N: Sequence[int], bootstrap: Bootstrap) -> Interval | None:
    if len(set(group_N)) == len(group_N):
        return None
    estimate = pair_estimate(values_NN, group_N, samples=bootstrap.samples, seed=bootstrap.seed)
    return Interval(**estimate._asdict())
