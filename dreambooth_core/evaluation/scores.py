"""The scores of one row: CLIP-T, CLIP-I, DINO, PRES, DIV (docs/scores.md has the formulas).

Legend: N generated images, M instance photos, K images of the class prompt, P prompts, L patches,
D width.
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
    patch_cosines,
)
from dreambooth_core.ports import Progress, StopSignal, never_stop, no_progress
from dreambooth_core.records import REAL, CheckpointScore, Harness, ImageScore, Interval

_ROW_FORMAT = 3
"""Raised with every new field or formula of a row, so that stored rows are scored again."""


@dataclass(frozen=True, kw_only=True)
class References:
    """The features of the instance photos, and their sha256."""

    clip_MD: Floats
    dino_MD: Floats
    patches_MLD: Floats
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The number of resamples per interval and their seed, the same for all scores of all rows."""

    samples: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Everything that the rows of one evaluation share: plan, scorers, photos and store."""

    plan: EvaluationPlan
    clip: ClipScorer
    dino: DinoScorer
    references: References
    store: ScoreStore
    bootstrap: Bootstrap

    @property
    def harness(self) -> Harness:
        """Everything that two rows must share to be comparable."""
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
    """The features of the accepted instance photos, in the manifest's order."""
    images = [open_image(path) for path in photos]
    dino_MD, patches_MLD = dino.images_and_patches(images)
    return References(
        clip_MD=clip.images(images),
        dino_MD=dino_MD,
        patches_MLD=patches_MLD,
        sha256=files.digest_of([files.sha256_file(path) for path in photos]),
    )


def open_image(path: Path) -> Image.Image:
    """Read one of the pipeline's PNG files as RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """The model of a row.

    `sha256` covers everything that its images depend on besides the plan; `checkpoint_sha256` is
    the hash of the checkpoint's files, and None for the base model.
    """

    name: str
    step: int
    sha256: str
    checkpoint_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class RowFeatures:
    """The unit-length features behind a row."""

    clip_ND: Floats
    dino_ND: Floats
    patches_NLD: Floats
    class_dino_KD: Floats
    text_PD: Floats


def score_checkpoint(
    evaluator: Evaluator,
    *,
    model: ScoredModel,
    rounds: int,
    sampler: Sampler,
    lanes: int = 1,
    progress: Progress = no_progress,
    should_stop: StopSignal = never_stop,
) -> CheckpointScore:
    """The row of one model from its first `rounds` rounds of images, stored ones where possible.

    Calls `sampler` only for blocks of images that the store lacks, so weights may be loaded on its
    first call. The base model has the name `STEP_0` and step 0. Raises Stopped between blocks.
    """
    images = evaluator.store.images(
        evaluator.plan,
        model_sha256=model.sha256,
        rounds=rounds,
        sampler=sampler,
        lanes=lanes,
        progress=progress,
        should_stop=should_stop,
    )
    key = score_key(evaluator, model.sha256, rounds=rounds)
    row = evaluator.store.load_scores(key)
    if row is None:
        row = score_features(evaluator, model=model, features=_features(evaluator, images))
        evaluator.store.save_scores(key, row)
    own = {"name": model.name, "step": model.step, "checkpoint_sha256": model.checkpoint_sha256}
    return row.model_copy(update=own)


def score_key(evaluator: Evaluator, model_sha256: str, *, rounds: int) -> str:
    """The key of a row: a hash of the model and of everything that its scores depend on."""
    bootstrap = dataclasses.asdict(evaluator.bootstrap)
    harness = evaluator.harness.to_json()
    return files.digest_of([_ROW_FORMAT, model_sha256, harness, bootstrap, rounds])


def row_images(evaluator: Evaluator, model_sha256: str, *, rounds: int) -> RowImages:
    """The images of a scored row. Raises RuntimeError if the store lacks some."""

    def no_sampler(prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Image.Image]:
        raise RuntimeError(f"the store lacks images of {prompts[0]!r}, seed {seeds[0]}")

    return evaluator.store.images(
        evaluator.plan, model_sha256=model_sha256, rounds=rounds, sampler=no_sampler
    )


def _features(evaluator: Evaluator, images: RowImages) -> RowFeatures:
    suite = [open_image(path) for path in images.suite]
    dino_ND, patches_NLD = evaluator.dino.images_and_patches(suite)
    return RowFeatures(
        clip_ND=evaluator.clip.images(suite),
        dino_ND=dino_ND,
        patches_NLD=patches_NLD,
        class_dino_KD=evaluator.dino.images([open_image(path) for path in images.class_prompt]),
        text_PD=evaluator.clip.texts(evaluator.plan.scored_texts),
    )


def score_features(
    evaluator: Evaluator, *, model: ScoredModel, features: RowFeatures
) -> CheckpointScore:
    """Compute a row, every number of docs/scores.md, from features."""
    plan, references, bootstrap = evaluator.plan, evaluator.references, evaluator.bootstrap
    dino_ND = features.dino_ND
    prompt_N = plan.prompt_indices(len(dino_ND) // len(plan.prompts))
    clip_t_N, text_range = clip_t_of(cosines(features.clip_ND, features.text_PD), prompt_N)
    clip_i_N = cosines(features.clip_ND, references.clip_MD).mean(axis=1)
    dino_N = cosines(dino_ND, references.dino_MD).mean(axis=1)
    pres_K = cosines(features.class_dino_KD, references.dino_MD).mean(axis=1)
    copied_NM = patch_cosines(features.patches_NLD, references.patches_MLD)
    suite = [(plan.prompts[p], seed) for p, seed in zip(prompt_N, plan.seeds, strict=False)]
    return CheckpointScore(
        name=model.name,
        step=model.step,
        checkpoint_sha256=model.checkpoint_sha256,
        images=tuple(
            ImageScore(
                prompt=prompt,
                seed=seed,
                clip_t=float(t),
                clip_i=float(i),
                dino=float(d),
                nearest=int(copied_M.argmax()),
                copied=float(copied_M.max()),
            )
            for (prompt, seed), t, i, d, copied_M in zip(
                suite, clip_t_N, clip_i_N, dino_N, copied_NM, strict=True
            )
        ),
        class_dino=tuple(pres_K.tolist()),
        n=len(suite),
        clip_t=_mean(clip_t_N, bootstrap),
        clip_i=_mean(clip_i_N, bootstrap),
        dino=_mean(dino_N, bootstrap),
        pres=_mean(pres_K, bootstrap),
        div=_pairs(
            1.0 - patch_cosines(features.patches_NLD, features.patches_NLD), prompt_N, bootstrap
        ),
        text_range=text_range,
    )


def clip_t_of(cosines_NP: Floats, prompt_N: Sequence[int]) -> tuple[Floats, float]:
    """CLIP-T of every image, and the text range: the mean of matched minus shuffled prompts.

    The shuffled score averages over all other prompts of the suite, which equals the average over
    all permutations.
    """
    count, num_prompts = cosines_NP.shape
    matched_N = cosines_NP[np.arange(count), np.asarray(prompt_N)]
    shuffled_N = (cosines_NP.sum(axis=1) - matched_N) / (num_prompts - 1)
    return matched_N, float((matched_N - shuffled_N).mean())


def score_real(evaluator: Evaluator) -> CheckpointScore:
    """The row that compares every instance photo with the others.

    It lacks CLIP-T (photos have no prompt), PRES and DIV. With a single photo it has no scores.
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
