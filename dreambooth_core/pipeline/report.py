"""The report: everything about a subject's last run on one page."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.errors import RegistryError
from dreambooth_core.evaluation import selection as selection_rule
from dreambooth_core.pipeline.common import (
    VERDICT,
    StageContext,
    confirmation_of,
    evaluation_of,
    picture_name,
    row_pictures,
    settings_that_count,
    table_of,
)
from dreambooth_core.pipeline.lineage import lineage_names
from dreambooth_core.records import (
    Evaluation,
    GateReport,
    LatentCache,
    Manifest,
    ModelVersion,
    RegisteredVersion,
    Selection,
    TrainingRun,
    Verdict,
)
from dreambooth_core.report import page
from dreambooth_core.workspace import Places


def run(context: StageContext) -> Path:
    """Write the page from the published outputs and the last verdict; returns its path."""
    view, places = context.settings, context.places
    evaluation = evaluation_of(context)
    scores = table_of(evaluation)
    gate_dir = places.stage_dir("validate")
    limits = selection_rule.limits_of(scores.rows, view.select, text_range=scores.text_range)
    content = page.PageContent(
        subject=view.name,
        identifier=view.subject.identifier,
        class_noun=view.subject.class_noun,
        gate=_gate_report(places),
        photos=[gate_dir / image.file for image in Manifest.read(gate_dir).images],
        scores=scores,
        images=_images(places, evaluation),
        selection=Selection.read(places.stage_dir("select")),
        confirmed=next(iter(table_of(confirmation_of(context)).rows), None),
        registered=_registered(context),
        verdict=Verdict.read_if_there(places.verdict_dir, VERDICT),
        losses=_losses(places.stage_dir("train") / "metrics.csv"),
        limits={"clip_t": limits.min_clip_t, "pres": limits.max_pres},
        settings=settings_that_count(view),
        lineage=_lineage(context),
    )
    path = places.report_page
    files.write_text(path, page.render_page(content))
    return path


def _gate_report(places: Places) -> GateReport:
    """The gate's report with the warnings of later stages."""
    report = GateReport.read(places.stage_dir("validate"), "report.json")
    class_ = Manifest.read(places.stage_dir("class-images"))
    cache = LatentCache.read(places.stage_dir("cache"))
    warnings = (*report.warnings, *class_.warnings, *cache.warnings)
    return report.model_copy(update={"warnings": warnings})


def _images(places: Places, evaluation: Evaluation) -> dict[str, list[Path]]:
    """Every sampled row's suite images, as the evaluate stage published them."""
    folder = places.stage_dir("evaluate")
    return {
        row.name: [row_pictures(folder, row.name) / picture_name(i) for i in range(row.n)]
        for row in evaluation.rows
        if row.step is not None
    }


def _registered(context: StageContext) -> RegisteredVersion | None:
    """The registered version, or None if nothing is registered or the registry is unreachable."""
    from dreambooth_core.pipeline import registered  # MLflow takes seconds to import

    if context.is_experiment:
        return None
    try:
        return registered.find(context)
    except RegistryError:
        return None


def _losses(path: Path) -> list[tuple[int, float]]:
    with path.open(encoding="utf-8", newline="") as table:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(table)]


def _lineage(context: StageContext) -> Mapping[str, str]:
    """Names and hashes of everything behind the chosen checkpoint."""
    places = context.places
    training = TrainingRun.read(places.stage_dir("train"))
    version = ModelVersion.read_if_there(places.stage_dir("register"))
    names = lineage_names(places, training)
    if version is not None:
        names |= {"version fingerprint": version.fingerprint, "checkpoint": version.sha256}
    return names | {"settings": files.digest_of(settings_that_count(context.settings))}
