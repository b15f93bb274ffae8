"""A page's content with made-up numbers and plain pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dreambooth_core.records import (
    AcceptedImage,
    GateReport,
    Harness,
    ImageScore,
    Interval,
    RankedCheckpoint,
    RegisteredVersion,
    RejectedFile,
    ScorerIdentity,
    ScoreRow,
    Scores,
    Selection,
    Verdict,
)
from dreambooth_core.report.live import Command, Standing
from dreambooth_core.report.page import Fact, PageContent, Pictures
from dreambooth_core.report.sheets import Column, Sample, Sheet, by_prompt

PROMPTS = ("a photo of sks mug on the beach", 'a photo of <b>sks</b> mug & "friends"')
HARNESS = Harness(
    suite="pocket",
    prompts=PROMPTS,
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


def interval(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.011, high=mean + 0.013)


def row(name: str, step: int | None, dino: float) -> ScoreRow:
    return ScoreRow(
        name=name,
        step=step,
        n=4,
        clip_t=None if step is None else interval(0.301),
        clip_i=interval(0.812),
        dino=interval(dino),
        pres=None if step is None else interval(0.423),
        div=None if step is None else interval(0.334),
    )


SCORES = Scores(
    harness=HARNESS,
    text_range=0.123,
    rows=(
        row("step 0", 0, 0.512),
        row("checkpoint-100", 100, 0.678),
        row("checkpoint-200", 200, 0.789),
        row("real", None, 0.901),
    ),
)
SELECTION = Selection(
    best="checkpoint-200",
    qualified=True,
    rule="checkpoint-200 has the highest DINO, 0.7890, of all.",
    ranked=tuple(
        RankedCheckpoint(
            name=f"checkpoint-{step}",
            step=step,
            qualified=True,
            why="CLIP-T 0.3010 >= 0.2900",
            clip_t=0.301,
            dino=dino,
            pres=0.423,
        )
        for step, dino in ((200, 0.789), (100, 0.678))
    ),
)
VERDICT = Verdict(
    challenger="dreambooth-mug/2",
    champion="dreambooth-mug/1",
    promote=True,
    why="dreambooth-mug/2 replaces dreambooth-mug/1: DINO differs by +0.0321.",
    difference={"dino": Interval(mean=0.0321, low=0.01, high=0.05)},
)
GATE = GateReport(
    subject="mug",
    accepted=(AcceptedImage(name="<i>.jpg", sha256="a" * 64, width=96, height=96),),
    rejected=(RejectedFile(name="dark.jpg", reason="blank"),),
    skipped=(RejectedFile(name="notes.txt", reason="no image"),),
    warnings=("fewer than 3 photos",),
)


def picture(folder: Path, name: str, shade: int, *, side: int = 64) -> Path:
    path = folder / name
    Image.new("RGB", (side, side), (shade, 255 - shade, 90)).save(path)
    return path


def pictures(folder: Path, name: str, column: int) -> Pictures:
    """Two rounds of the suite, except for checkpoint-100 with one, and two of the class."""
    count = 2 if name == "checkpoint-100" else 4
    suite = [
        Sample(
            path=picture(folder, f"{name}-{i}.png", 40 * i + column),
            seed=i + 1,
            score=ImageScore(
                prompt=PROMPTS[i % 2],
                seed=i + 1,
                clip_t=0.3,
                clip_i=0.8,
                dino=0.7,
                nearest=0,
                copied=0.75,
            ),
        )
        for i in range(count)
    ]
    classes = [
        Sample(path=picture(folder, f"{name}-class-{i}.png", 90 + i), seed=5 + i)
        for i in range(count // 2)
    ]
    return Pictures(suite=suite, class_prompt=classes)


def duel(folder: Path) -> Sheet:
    """Two rounds of the suite by champion and challenger."""
    names = ("dreambooth-mug/1", "dreambooth-mug/2")
    columns = [Column(name=names[0]), Column(name=names[1], chosen=True)]
    samples = {
        name: pictures(folder, name.replace("/", "-"), 7 + i).suite for i, name in enumerate(names)
    }
    return by_prompt("duel", columns, samples, prompts=PROMPTS)


def page_content(folder: Path) -> PageContent:
    """A page about a subject called `mug`; its pictures are written into `folder`."""
    names = ("step 0", "checkpoint-100", "checkpoint-200")
    return PageContent(
        subject="mug",
        identifier="sks",
        class_noun="mug",
        gate=GATE,
        photos=[picture(folder, "photo.png", 3, side=400)],
        scores=SCORES,
        pictures={name: pictures(folder, name, column) for column, name in enumerate(names)},
        selection=SELECTION,
        confirmed=row("checkpoint-200", 200, 0.777),
        standing=Standing("Champion", "good", "Promoted by ada on 2026-01-02."),
        registered=RegisteredVersion(
            name="dreambooth-mug",
            version=2,
            fingerprint="f" * 64,
            checkpoint="checkpoint-200",
            sha256="b" * 64,
            qualified=True,
        ),
        verdict=VERDICT,
        commands=[Command("Compare the versions:", "dreambooth compare mug --why 'a & b'")],
        facts=[
            Fact(name="Device", text="CPU"),
            Fact(name="MLflow run", text="full-1", address="http://127.0.0.1:5000/#/x"),
        ],
        duel=duel(folder),
        losses=[(step, 1.0 / step) for step in range(1, 200)],
        limits={"clip_t": 0.291, "pres": 0.5},
        settings={"train": {"learning_rate": 5e-5, "lora": None}},
        lineage={"Instance photos": "e" * 64},
    )
