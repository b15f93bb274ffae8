"""The report: a page about the version that the present outputs are, and the pages of all versions.

The pages' standing and verdict come from the registry, so a promotion changes them on every page.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dreambooth_core import files
from dreambooth_core.config import SelectSettings
from dreambooth_core.errors import RegistryError, UnknownModelError
from dreambooth_core.evaluation import selection as selection_rule
from dreambooth_core.pipeline import duel, origin, registered
from dreambooth_core.pipeline.common import (
    StageContext,
    confirmation_of,
    evaluation_of,
    picture_name,
    row_pictures,
    settings_that_count,
    table_of,
)
from dreambooth_core.pipeline.lineage import lineage_names
from dreambooth_core.pipeline.standing import (
    EXPERIMENT,
    UNREACHABLE,
    commands_for,
    standing_of,
    unregistered,
)
from dreambooth_core.records import (
    Evaluation,
    GateReport,
    LatentCache,
    Manifest,
    Selection,
    TrainingRun,
    Verdict,
)
from dreambooth_core.registry import links, runs, versions
from dreambooth_core.registry.verdicts import verdict_of
from dreambooth_core.registry.versions import VersionInfo
from dreambooth_core.report import live, page
from dreambooth_core.report.live import Command, Standing
from dreambooth_core.report.page import Pictures
from dreambooth_core.report.sheets import Sample
from dreambooth_core.workspace import Places, Workspace

PAGE_ARTIFACT = "report.html"
"""Name of the page among the artifacts of a version's run."""


@dataclass(frozen=True)
class _Shown:
    """What a page shows of the registry: a version (or none), its standing and its verdict."""

    subject: str
    version: VersionInfo | None
    standing: Standing

    @property
    def number(self) -> int | None:
        return self.version.version.version if self.version else None

    @property
    def verdict(self) -> Verdict | None:
        return verdict_of(self.version) if self.version else None

    @property
    def parts(self) -> dict[str, Markup]:
        return live.render_parts(
            self.number,
            standing=self.standing,
            verdict=self.verdict,
            commands=self.commands,
        )

    @property
    def commands(self) -> list[Command]:
        return commands_for(self.subject, self.version)


def run(context: StageContext) -> Path:
    """Write the page of the present outputs; returns its path.

    Everything about a registered version comes from that version's tags and from the outputs that
    it was registered with. Each version's page is kept, and the registry's run has a copy.
    """
    shown = _shown(context)
    html = page.render_page(_content(context, shown))
    path = context.places.report_page
    files.write_text(path, html)
    if shown.version is not None:
        files.write_text(_page_of(context, shown.version), html)
        _upload(context, shown.version, html)
    if shown.standing != UNREACHABLE and not context.is_experiment:
        refresh(context)
    return path


def refresh(context: StageContext) -> None:
    """Show the versions' present standing and verdicts on all pages. Raises RegistryError."""
    name, subject = context.settings.model_name, context.settings.name
    there = [path for path in _pages(context.places) if path.is_file()]
    if not there:
        return
    found = {v.version.version: v for v in _versions(context, name)}
    for path in there:
        html = path.read_text(encoding="utf-8")
        version = found.get(live.version_of(html) or 0)
        if version is None:
            continue
        parts = _Shown(subject, version, standing_of(version, subject=subject)).parts
        changed = live.with_parts(html, parts)
        if changed != html:
            files.write_text(path, changed)
            if path != context.places.report_page:
                _upload(context, version, changed)


def is_current(context: StageContext) -> bool:
    """Whether the page shows the version of the present outputs, with its standing and verdict."""
    path = context.places.report_page
    if not path.is_file():
        return False
    html, shown = path.read_text(encoding="utf-8"), _shown(context)
    return live.version_of(html) == shown.number and live.with_parts(html, shown.parts) == html


def address(context: StageContext) -> str | None:
    """The page in the web interface of MLflow's server; None without one or for no version."""
    tracking = registered.tracking_of(context)
    server = links.server_of(tracking, Workspace(context.places.root))
    version = _shown(context).version if server else None
    if server is None or version is None or version.run_id is None:
        return None
    return links.artifact_page(
        tracking,
        server,
        run_id=version.run_id,
        file=f"{version.artifact_folder}/{PAGE_ARTIFACT}",
    )


def _pages(places: Places) -> list[Path]:
    return [places.report_page, *sorted(places.version_pages.glob("*.html"))]


def _page_of(context: StageContext, version: VersionInfo) -> Path:
    return context.places.version_pages / f"{version.version.version}.html"


def _versions(context: StageContext, name: str) -> list[VersionInfo]:
    try:
        return versions.list_versions(registered.tracking_of(context), name=name)
    except UnknownModelError:
        return []


def _shown(context: StageContext) -> _Shown:
    """What the registry says of the present outputs."""
    subject = context.settings.name
    if context.is_experiment:
        return _Shown(subject, None, EXPERIMENT)
    try:
        version = registered.info_of(context)
    except RegistryError:
        return _Shown(subject, None, UNREACHABLE)
    if version is None:
        return _Shown(subject, None, unregistered(subject))
    return _Shown(subject, version, standing_of(version, subject=subject))


def _upload(context: StageContext, version: VersionInfo, html: str) -> None:
    """Put the page among the artifacts of the version's run."""
    if version.run_id is not None:
        file = f"{version.artifact_folder}/{PAGE_ARTIFACT}"
        runs.log_text(registered.tracking_of(context), version.run_id, html, file)


def _content(context: StageContext, shown: _Shown) -> page.PageContent:
    view, places = context.settings, context.places
    evaluation = evaluation_of(context)
    scores = table_of(evaluation)
    settings = (shown.version and shown.version.settings) or settings_that_count(view)
    select = SelectSettings.model_validate(settings["select"])
    limits = selection_rule.limits_of(evaluation.rows, select, text_range=scores.text_range)
    gate_dir = places.stage_dir("validate")
    return page.PageContent(
        subject=view.name,
        identifier=settings["subject"]["identifier"],
        class_noun=settings["subject"]["class_noun"],
        gate=_gate_report(places),
        photos=[gate_dir / image.file for image in Manifest.read(gate_dir).images],
        scores=scores,
        pictures=_pictures(places, evaluation),
        selection=Selection.read(places.stage_dir("select")),
        confirmed=next(iter(table_of(confirmation_of(context)).rows), None),
        standing=shown.standing,
        registered=shown.version.version if shown.version else None,
        verdict=shown.verdict,
        commands=shown.commands,
        facts=_facts(context, shown.version),
        duel=duel.sheet_of(places, shown.verdict, prompts=scores.harness.prompts),
        losses=_losses(places.stage_dir("train") / "metrics.csv"),
        limits=limits.over_all_images,
        class_warnings=Manifest.read(places.stage_dir("class-images")).warnings,
        settings=settings,
        lineage=_lineage(context, shown.version, settings),
    )


def _facts(context: StageContext, version: VersionInfo | None) -> list[page.Fact]:
    if version is None:
        return []
    tracking = registered.tracking_of(context)
    server = links.server_of(tracking, Workspace(context.places.root))
    return origin.facts_of(tracking, version, server=server)


def _gate_report(places: Places) -> GateReport:
    """The gate's report with the warnings of the cache."""
    report = GateReport.read(places.stage_dir("validate"), "report.json")
    cache = LatentCache.read(places.stage_dir("cache"))
    warnings = (*report.warnings, *cache.warnings)
    return report.model_copy(update={"warnings": warnings})


def _pictures(places: Places, evaluation: Evaluation) -> dict[str, Pictures]:
    """Every sampled row's pictures, as the evaluate stage published them."""
    folder = places.stage_dir("evaluate")
    found: dict[str, Pictures] = {}
    for row in evaluation.rows:
        if row.step is None:
            continue
        own = row_pictures(folder, row.name)
        suite = [
            Sample(path=own / picture_name(i), seed=image.seed, score=image)
            for i, image in enumerate(row.images)
        ]
        later = sorted(own.glob("*.png"))[row.n :]
        seeds = evaluation.harness.class_seeds
        classes = [Sample(path=p, seed=s) for p, s in zip(later, seeds, strict=False)]
        found[row.name] = Pictures(suite=suite, class_prompt=classes)
    return found


def _losses(path: Path) -> list[tuple[int, float]]:
    with path.open(encoding="utf-8", newline="") as table:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(table)]


def _lineage(
    context: StageContext, version: VersionInfo | None, settings: Mapping[str, Any]
) -> Mapping[str, str]:
    """Names and hashes of everything behind the chosen checkpoint."""
    places = context.places
    training = TrainingRun.read(places.stage_dir("train"))
    names = lineage_names(places, training)
    if version is not None:
        commit = version.tags.get("git_commit")
        names |= {"code (git)": commit} if commit else {}
        names |= {"version fingerprint": version.version.fingerprint}
        names |= {"checkpoint": version.version.sha256}
    return names | {"settings": files.digest_of(settings)}
