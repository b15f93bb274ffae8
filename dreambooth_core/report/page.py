"""The report of a subject: one self-contained HTML page, the same bytes for the same records."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dreambooth_core.config import flatten
from dreambooth_core.records import (
    REAL,
    STEP_0,
    GateReport,
    RegisteredVersion,
    ScoreRow,
    Scores,
    Selection,
    Verdict,
)
from dreambooth_core.report import KINDS, ScoreKind, live, sheets
from dreambooth_core.report.advice import Advice, Evidence, advise
from dreambooth_core.report.curves import Level, Point, line_chart, smooth
from dreambooth_core.report.live import Command, Standing
from dreambooth_core.report.pictures import data_uris
from dreambooth_core.report.sheets import Column, Sample, Sheet
from dreambooth_core.report.tradeoff import Place, scatter

_PICTURE_CHARS = 13_000_000
"""Of all pictures together, so that the page has less than 15 MB."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A fact about a run, such as its device, with the address of its page if it has one."""

    name: str
    text: str
    address: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of a row: those of the suite, round by round, and those of the class prompt."""

    suite: Sequence[Sample]
    class_prompt: Sequence[Sample]


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """The content of the page.

    `confirmed` is the row of the selected checkpoint on fresh seeds; `losses` are (step, loss) of
    every step; `limits` the selection's limits by score (`clip_t`, `pres`); `class_warnings` the
    advice on the class images; `duel` the pictures of challenger and champion; `settings` the
    subject's sections; `lineage` names with hashes, in order.
    """

    subject: str
    identifier: str
    class_noun: str
    gate: GateReport
    photos: Sequence[Path]
    scores: Scores
    pictures: Mapping[str, Pictures]
    selection: Selection
    standing: Standing
    confirmed: ScoreRow | None = None
    registered: RegisteredVersion | None = None
    verdict: Verdict | None = None
    commands: Sequence[Command] = ()
    facts: Sequence[Fact] = ()
    duel: Sheet | None = None
    losses: Sequence[tuple[int, float]] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    class_warnings: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)


def render_page(content: PageContent) -> str:
    """Render the page as HTML without external files; escapes all texts."""
    environment = live.environment()
    number = content.registered.version if content.registered else None
    grid, classes = _grid(content), _classes(content)
    shown = [sheet for sheet in (grid, classes, content.duel) if sheet is not None]
    uris = data_uris(
        [*content.photos, *(path for sheet in shown for path in sheet.paths)],
        limit_chars=_PICTURE_CHARS,
    )
    advice = _advice(content)
    script = _own("page.js")
    return environment.get_template("page.html.j2").render(
        content=content,
        style=_own("page.css"),
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        kinds=KINDS,
        advice=advice,
        tiles=_tiles(content),
        rows=_table(content),
        charts=_charts(content),
        tradeoff=_tradeoff(content),
        photos=list(zip(content.photos, content.gate.accepted, strict=True)),
        uris=uris,
        grid=grid,
        best=_best_column(grid),
        classes=classes,
        class_warnings=_class_warnings(content, advice),
        live=live.render_parts(
            number,
            standing=content.standing,
            verdict=content.verdict,
            commands=content.commands,
        ),
        settings=sorted(
            (key, "null" if value is None else str(value))
            for key, value in flatten(content.settings).items()
        ),
    )


def _own(name: str) -> Markup:
    """A file of the package's templates, which contains no user texts."""
    environment = live.environment()
    text, _, _ = environment.loader.get_source(environment, name)  # type: ignore[union-attr]
    return Markup(text)


# ---- parts of the page --------------------------------------------------------------------------


def _row(scores: Scores, name: str | None) -> ScoreRow | None:
    return next((row for row in scores.rows if row.name == name), None)


def _advice(content: PageContent) -> Advice:
    base = _row(content.scores, STEP_0)
    if content.confirmed is None or base is None:
        return advise(None)
    return advise(
        Evidence(
            row=content.confirmed,
            base=base,
            real=_row(content.scores, REAL),
            limits=content.limits,
            text_range=content.scores.text_range,
            is_qualified=content.selection.qualified,
            class_noun=content.class_noun,
        )
    )


def _class_warnings(content: PageContent, advice: Advice) -> Sequence[str]:
    """The advice on the class images, if the class was lost: else they were enough."""
    return () if advice.keeps_class else content.class_warnings


def _tradeoff(content: PageContent) -> Markup | None:
    """The plot of all rows with a prompt; None if none has both scores."""
    real = _row(content.scores, REAL)
    places = [
        Place(
            name=row.name,
            label="base model" if row.name == STEP_0 else str(row.step),
            kind="base"
            if row.name == STEP_0
            else "chosen"
            if row.name == content.selection.best
            else "checkpoint",
            prompt=row.clip_t.mean,
            subject=row.dino.mean,
        )
        for row in sorted(content.scores.rows, key=_table_order)
        if row.clip_t is not None and row.dino is not None
    ]
    if not places:
        return None
    photos = real.dino.mean if real and real.dino else None
    return scatter(places, photos=photos, min_prompt=content.limits.get("clip_t"))


def _tiles(content: PageContent) -> list[dict[str, Any]]:
    """The selected checkpoint's scores on fresh seeds, with base model and real photos."""
    best, base, real = content.confirmed, *(_row(content.scores, n) for n in (STEP_0, REAL))
    tiles: list[dict[str, Any]] = []
    for kind in KINDS:
        value, before, photo = (getattr(row, kind.key, None) for row in (best, base, real))
        if value is not None and before is not None:
            change = value.mean - before.mean
            tone = "good" if change * kind.better > 0 else "bad"
            if kind.key in ("clip_t", "pres", "div"):
                tone = "plain"  # training costs some of these; the limits judge them
            tiles.append(
                {
                    "kind": kind,
                    "value": value,
                    "base": before.mean,
                    "real": None if photo is None else photo.mean,
                    "change": change,
                    "tone": tone,
                }
            )
    return tiles


def _table(content: PageContent) -> list[dict[str, Any]]:
    """The rows of the table, with marks for references and for the best value of each score."""
    checkpoints = [row for row in content.scores.rows if row.step]
    judged = {ranked.name: ranked for ranked in content.selection.ranked}
    peaks: dict[str, float] = {}
    for kind in KINDS:
        means = [v.mean for row in checkpoints if (v := getattr(row, kind.key)) is not None]
        if means:
            peaks[kind.key] = max(means) if kind.better > 0 else min(means)
    return [
        {
            "row": row,
            "reference": not row.step,
            "chosen": row.name == content.selection.best,
            "judged": judged.get(row.name),
            "cells": [
                {"value": value, "peak": bool(row.step) and value and value.mean == peaks[kind.key]}
                for kind in KINDS
                for value in [getattr(row, kind.key)]
            ],
        }
        for row in sorted(content.scores.rows, key=_table_order)
    ]


def _table_order(row: ScoreRow) -> tuple[int, int]:
    return (2 if row.step is None else 1 if row.step else 0, row.step or 0)


def _charts(content: PageContent) -> list[dict[str, Any]]:
    real = _row(content.scores, REAL)
    best = _row(content.scores, content.selection.best)
    charts: list[dict[str, Any]] = []
    for kind in KINDS:
        points = [
            Point(step=row.step, value=value.mean, low=value.low, high=value.high)
            for row in sorted(content.scores.rows, key=_table_order)
            if row.step is not None and (value := getattr(row, kind.key)) is not None
        ]
        if not points:
            continue
        svg = line_chart(
            points,
            label=f"{kind.name} over steps",
            levels=_levels(content, kind, real=real),
            marked=best.step if best else None,
        )
        charts.append({"title": kind.name, "means": kind.means, "better": kind.better, "svg": svg})
    if content.losses:
        svg = line_chart(smooth(content.losses), label="Training loss over steps")
        means = "of the noise prediction, averaged over stretches of steps"
        charts.append({"title": "Training loss", "means": means, "better": 0, "svg": svg})
    return charts


def _levels(content: PageContent, kind: ScoreKind, *, real: ScoreRow | None) -> list[Level]:
    levels: list[Level] = []
    ceiling = getattr(real, kind.key, None)
    if ceiling is not None:
        levels.append(Level(value=ceiling.mean, label="real photos", kind="real"))
    if kind.key in content.limits:
        word = "at least" if kind.better > 0 else "at most"
        value = content.limits[kind.key]
        levels.append(Level(value=value, label=f"{word} {value:.3f}", kind="limit"))
    return levels


def _grid(content: PageContent) -> Sheet:
    """Prompts down, the base model and every checkpoint across, a row per seed."""
    order = [row.name for row in sorted(content.scores.rows, key=_table_order)]
    columns = [
        Column(
            name=name,
            note="base model" if name == STEP_0 else "",
            chosen=name == content.selection.best,
        )
        for name in order
        if name in content.pictures
    ]
    samples = {column.name: content.pictures[column.name].suite for column in columns}
    return sheets.by_prompt("prompts", columns, samples, prompts=content.scores.harness.prompts)


def _best_column(grid: Sheet) -> list[tuple[str, Sample]]:
    """The first picture of each prompt by the chosen checkpoint."""
    index = next((i for i, column in enumerate(grid.columns) if column.chosen), None)
    if index is None:
        return []
    firsts = [(group.prompt, group.rows[0][index]) for group in grid.groups]
    return [(prompt, sample) for prompt, sample in firsts if sample is not None]


def _classes(content: PageContent) -> Sheet | None:
    """The class before and after the training, on the same seeds."""
    best = content.pictures.get(content.selection.best or "")
    base = content.pictures.get(STEP_0)
    if best is None or base is None or not best.class_prompt:
        return None
    rows = {"before": base.class_prompt, "after": best.class_prompt}
    return sheets.before_and_after("classes", rows)
