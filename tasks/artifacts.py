"""Prefect artifacts of a flow run: gate report, score table, image grid, verdict."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from dreambooth_core.records import (
    SCORES,
    GateReport,
    Interval,
    ScoreRow,
    Scores,
    Selection,
    Verdict,
)
from tasks.run import SubjectRun

_INLINE_BYTES = 400_000


def _key(run: SubjectRun, what: str) -> str:
    """An artifact's key, which may contain only lower-case letters, digits and dashes."""
    return f"{run.subject.replace('_', '-')}-{what}"


def gate_report(run: SubjectRun) -> None:
    """Publish the verdict of the data gate on every file."""
    folder = run.places.stage_dir("validate")
    report = GateReport.read(folder, "report.json")
    lines = [f"# Photos of {run.subject}", "", "| file | verdict |", "|---|---|"]
    lines += [
        f"| {_cell(i.name)} | accepted {i.width}x{i.height} {_cell('; '.join(i.warnings))} |"
        for i in report.accepted
    ]
    lines += [f"| {_cell(e.name)} | rejected: {_cell(e.reason)} |" for e in report.rejected]
    lines += [f"| {_cell(e.name)} | skipped: {_cell(e.reason)} |" for e in report.skipped]
    lines += ["", *(f"- {warning}" for warning in report.warnings)]
    create_markdown_artifact("\n".join(lines), key=_key(run, "gate-report"))


def _cell(text: str) -> str:
    """Escape a user's text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _score_row(row: ScoreRow) -> dict[str, str]:
    cells = {"row": row.name, "images": str(row.n)}
    for name, title in SCORES.items():
        cells[title] = _spell(getattr(row, name))
    return cells


def _spell(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def score_table(run: SubjectRun) -> None:
    """CLIP-T, CLIP-I, DINO, PRES and DIV of every row."""
    scores = Scores.read(run.places.stage_dir("evaluate"), "scores.json")
    rows = [_score_row(row) for row in scores.rows]
    create_table_artifact(rows, key=_key(run, "scores"))


def picture_grid(run: SubjectRun) -> None:
    """Publish the grid of prompts x checkpoints: inline if small enough, else as a link."""
    path = run.places.stage_dir("evaluate") / "grid.png"
    if path.stat().st_size <= _INLINE_BYTES:
        source = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    else:
        source = path.as_uri()
    text = f"# {run.subject}: prompts x checkpoints\n\n![grid]({source})\n\n{path}"
    create_markdown_artifact(text, key=_key(run, "grid"))


def verdict(run: SubjectRun, result: Verdict) -> None:
    """Publish the verdict with its reason and links."""
    selection = Selection.read(run.places.stage_dir("select"))
    lines = [
        f"# {run.subject}: {'promoted' if result.promote else 'stays challenger'}",
        "",
        result.why,
        "",
        f"- challenger: {result.challenger}",
        f"- champion before: {result.champion or 'none'}",
        f"- chosen checkpoint: {selection.best}. {selection.rule}",
        *_differences(result.difference.items()),
        f"- page: {run.places.report_page.as_uri()}",
        f"- registry: {run.store}",
    ]
    create_markdown_artifact("\n".join(lines), key=_key(run, "verdict"))


def _differences(items: Iterable[tuple[str, Interval]]) -> list[str]:
    return [f"- difference in {name}: {_spell(interval)}" for name, interval in items]
