"""Records with made-up numbers, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from dreambooth_core.config import EvaluateSettings, SelectSettings, SubjectSettings
from dreambooth_core.records import (
    CheckpointScore,
    Evaluation,
    Harness,
    ImageScore,
    Interval,
    ScorerIdentity,
)

SUBJECT = SubjectSettings(
    instance_dir="data/instance/mug",
    identifier="sks",
    class_noun="mug",
    prompts=None,
    overrides={},
)
SETTINGS = EvaluateSettings(
    suite="pocket",
    images_per_prompt=4,
    racing=True,
    num_class_prompt_images=16,
    seed=1234,
    num_inference_steps=25,
    guidance_scale=3.0,
    sample_batch_size=16,
    clip="assets/pocket-clip",
    dino="assets/pocket-dino",
    bootstrap_samples=200,
)
SELECT = SelectSettings(max_clip_t_loss=0.1, max_pres_gain=0.25)

HARNESS = Harness(
    suite="pocket",
    prompts=("a photo of sks mug on the beach", "a photo of sks mug at night"),
    class_prompt="a photo of mug",
    seeds=(1, 2, 3, 4),
    class_seeds=(5, 6),
    scorers={
        "clip": ScorerIdentity(name="clip", backbone="assets/pocket-clip", sha256="c" * 64),
        "dino": ScorerIdentity(name="dino", backbone="assets/pocket-dino", sha256="d" * 64),
    },
    sampler="DDIMScheduler",
    steps=25,
    guidance=3.0,
    resolution=64,
    batch_size=16,
    instance_sha256="e" * 64,
)


def interval(mean: float, width: float = 0.02) -> Interval:
    """An interval of `width` on either side."""
    return Interval(mean=mean, low=mean - width, high=mean + width)


def score_row(
    name: str,
    step: int | None,
    *,
    clip_t: float,
    dino: float,
    pres: float,
    dino_of_images: Sequence[float] | None = None,
    spread: float = 0.0,
) -> CheckpointScore:
    """A row with plausible CLIP-I and DIV; without `dino_of_images`, all images are alike.

    CLIP-T and PRES of the images alternate, `spread` above and below their means.
    """
    dino_N = list(dino_of_images or [dino] * 32)
    spread_N = [spread * (-1) ** i for i in range(len(dino_N))]
    images = [
        ImageScore(prompt=f"prompt {i}", seed=i, clip_t=clip_t + off, clip_i=0.8, dino=value)
        for i, (value, off) in enumerate(zip(dino_N, spread_N, strict=True))
    ]
    return CheckpointScore(
        name=name,
        step=step,
        checkpoint_sha256="a" * 64,
        images=tuple(images),
        class_dino=tuple(pres + off for off in spread_N),
        n=len(images),
        clip_t=interval(clip_t),
        clip_i=interval(0.8),
        dino=interval(dino),
        pres=interval(pres),
        div=interval(0.3),
        text_range=0.1,
    )


def real_row(dino: float | None = 0.9) -> CheckpointScore:
    """The row of the instance photos; `None`: there is only one photo."""
    return CheckpointScore(
        name="real",
        step=None,
        checkpoint_sha256=None,
        images=(),
        n=4 if dino is not None else 1,
        clip_t=None,
        clip_i=None if dino is None else interval(0.95),
        dino=None if dino is None else interval(dino),
        pres=None,
        div=None,
        text_range=None,
    )


def scores(rows: Sequence[CheckpointScore], *, text_range: float = 0.1) -> Evaluation:
    """The table of an evaluation."""
    return Evaluation(harness=HARNESS, text_range=text_range, rows=tuple(rows))


def checkpoint_score(
    images: Sequence[ImageScore], *, name: str = "checkpoint-200", step: int = 200
) -> CheckpointScore:
    """A row with its samples; only the samples are of meaning."""
    return CheckpointScore(
        name=name,
        step=step,
        checkpoint_sha256="a" * 64,
        images=tuple(images),
        n=len(images),
        clip_t=interval(0.3),
        clip_i=interval(0.8),
        dino=interval(0.7),
        pres=interval(0.4),
        div=interval(0.3),
        text_range=0.1,
    )
