"""The report of a subject: one self-contained HTML page, the same bytes for the same records."""

from __future__ import annotations

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
from dreambooth_core.report import KINDS, ScoreKind, live
from dreambooth_core.report.curves import Level, Point, line_chart, smooth
from dreambooth_core.report.grid import first_of_each
from dreambooth_core.report.live import Standing
from dreambooth_core.report.pictures import data_uri


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """The content of the page. `images` holds every row's suite images, round by round.

    `confirmed` is the row of the selected checkpoint on fresh seeds; `losses` are (step, loss) of
    every step; `limits` the selection's limits by score (`clip_t`,
    `pres`); `settings` the subject's sections; `lineage` names with hashes, in order.
    """

    subject: str
    identifier: str
    class_noun: str
    gate: GateReport
    photos: Sequence[Path]
    scores: Scores
    images: Mapping[str, Sequence[Path]]
    selection: Selection
    standing: Standing
    confirmed: ScoreRow | None = None
    registered: RegisteredVersion | None = None
    verdict: Verdict | None = None
    losses: Sequence[tuple[int, float]] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)


def render_page(content: PageContent) -> str:
    """Render the page as HTML without scripts or external files; escapes all texts."""
    environment = live.environment()
    number = content.registered.version if content.registered else None
    style, _, _ = environment.loader.get_source(environment, "page.css")  # type: ignore[union-attr]
    return environment.get_template("page.html.j2").render(
        content=content,
        # The package's style sheet, which contains no user texts.
        style=Markup(style),
        kinds=KINDS,
        tiles=_tiles(content),
        rows=_table(content),
        charts=_charts(content),
        photos=_photos(content),
        grid=_grid(content),
        best_images=_best_images(content),
        live=live.render_parts(number, standing=content.standing, verdict=content.verdict),
        settings=sorted(
            (key, "null" if value is None else str(value))
            for key, value in flatten(content.settings).items()
        ),
    )


# ---- parts of the page --------------------------------------------------------------------------


def _row(scores: Scores, name: str | None) -> ScoreRow | None:
    return next((row for row in scores.rows if row.name == name), None)


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


def _photos(content: PageContent) -> list[dict[str, Any]]:
    return [
        {"uri": data_uri(path), "image": image}
        for path, image in zip(content.photos, content.gate.accepted, strict=True)
    ]


def _grid(content: PageContent) -> dict[str, Any]:
    """The grid's columns (rows of scores) and rows (prompts), with the first image of each."""
    prompts = content.scores.harness.prompts
    order = [row for row in sorted(content.scores.rows, key=_table_order) if row.name != REAL]
    names = [row.name for row in order if row.name in content.images]
    columns = [first_of_each(content.images[name], num_prompts=len(prompts)) for name in names]
    return {
        "names": names,
        "rows": [
            {"prompt": prompt, "cells": [data_uri(column[index]) for column in columns]}
            for index, prompt in enumerate(prompts)
        ],
    }


def _best_images(content: PageContent) -> list[dict[str, str]]:
    """One image per prompt of the chosen checkpoint, for the top of the page."""
    prompts = content.scores.harness.prompts
    paths = content.images.get(content.selection.best or "")
    if not paths:
        return []
    shown = first_of_each(paths, num_prompts=len(prompts))
    return [
        {"uri": data_uri(path), "prompt": prompt}
        for path, prompt in zip(shown, prompts, strict=True)
    ]
