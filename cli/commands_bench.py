"""The command dreambench: many subjects, scored as in the DreamBooth paper."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli import running
from cli.session import JsonOption, Session, open_session, user_path

if TYPE_CHECKING:
    from dreambooth_core.pipeline.dreambench import BenchPlan
    from dreambooth_core.records import GateReport


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(dreambench)


def dreambench(
    subjects_root: Annotated[
        Path,
        typer.Option(
            parser=user_path,
            metavar="FOLDER",
            help="Folder laid out like the paper's data set: a folder of photos per subject, and "
            "prompts_and_classes.txt.",
        ),
    ],
    *,
    subjects: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these, such as cat2,vase.")
    ] = None,
    ablations: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Train the first N subjects also without prior preservation, without a class "
            "noun and with a wrong one.",
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="FOLDER",
            help="Folder of the results; the same command resumes there. Default: dreambench in "
            "the project folder.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Check photos, classes and prompts, and train nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train many subjects and score them with the protocol of the DreamBooth paper."""
    session = open_session(as_json=json, **running.SILENT_PREFECT)
    root = subjects_root.absolute()
    names = [name.strip() for name in (subjects or "").split(",") if name.strip()]
    if plan:
        _show_plan(session, root, names, ablations)
        return
    results = out.absolute() if out else session.workspace.root / "dreambench"
    result = running.run_bench(
        session, subjects_root=str(root), out=str(results), subjects=names, ablations=ablations
    )
    page = Path(result["page"])
    session.terminal.finish(result, lambda console: _show_results(console, page))


def _show_results(console: Console, page: Path) -> None:
    console.print(page.read_text("utf-8"))
    console.print(f"{page} and results.json next to it have these tables")


def _show_plan(session: Session, root: Path, names: list[str], num_ablated: int) -> None:
    from dreambooth_core.data.subject_folders import missing_subjects
    from dreambooth_core.pipeline import dreambench

    with tempfile.TemporaryDirectory() as scratch:
        found, reports = dreambench.plan_for(
            session.workspace.root, root, scratch=Path(scratch), names=names,
            num_ablated=num_ablated,
        )  # fmt: skip
    missing = missing_subjects(root)
    if missing:
        session.terminal.warn(f"no photos of {', '.join(missing)}, which the list of classes names")
    result = _plan_as_json(found, reports)
    session.terminal.finish(result, lambda console: _print_plan(console, result))


def _plan_as_json(plan: BenchPlan, reports: list[GateReport]) -> dict[str, Any]:
    gates = {report.subject: report for report in reports}
    subjects: list[dict[str, Any]] = []
    for subject in plan.subjects:
        gate = gates[subject.name]
        warnings = [f"{image.name}: {text}" for image in gate.accepted for text in image.warnings]
        subjects.append(
            {
                **subject.model_dump(exclude={"photos"}, mode="json"),
                "photos": len(gate.accepted),
                "rejected": [f"{each.name}: {each.reason}" for each in gate.rejected],
                "warnings": [*gate.warnings, *warnings],
            }
        )
    return {"subjects": subjects, "images": plan.num_images}


def _print_plan(console: Console, result: dict[str, Any]) -> None:
    table = Table(title="DreamBench")
    for column in ("subject", "class noun", "photos", "prompts", "seeds", "conditions"):
        table.add_column(column, overflow="fold")
    for subject in result["subjects"]:
        prompts = f"{subject['num_prompts']} ({subject['suite']})"
        seeds, conditions = subject["images_per_prompt"], ", ".join(subject["conditions"])
        table.add_row(
            subject["name"], subject["class_noun"], str(subject["photos"]), prompts, str(seeds),
            conditions,
        )  # fmt: skip
    console.print(table)
    console.print(f"subjects: {len(result['subjects'])}, images to score: {result['images']}")
    for subject in result["subjects"]:
        for text in (*subject["rejected"], *subject["warnings"]):
            console.print(f"{subject['name']}: {text}", style="yellow")
