"""What the tasks ask of the core besides running a stage, and what no DVC stage knows of."""

from __future__ import annotations

from dreambooth_core import files
from dreambooth_core.records import RegisteredVersion, Verdict
from tasks.run import SubjectRun


def rows_to_score(run: SubjectRun) -> tuple[str, ...]:
    """Names of the rows of the score table."""
    from dreambooth_core.pipeline import evaluate

    return evaluate.rows_to_score(run.context("evaluate"))


def score_row(run: SubjectRun, row: str) -> None:
    """Score one row into the store. Raises Stopped between sampling blocks."""
    from dreambooth_core.pipeline import evaluate

    evaluate.score_row(run.context(f"score {row}"), row)


def compare(run: SubjectRun) -> Verdict:
    """Decide between challenger and champion, and act on it."""
    from dreambooth_core.pipeline import compare as stage

    return stage.run(run.context("compare"))


def registered_version(run: SubjectRun) -> RegisteredVersion | None:
    """The version in the registry that the published selection stands for."""
    from dreambooth_core.pipeline import registered

    return registered.find(run.context("register"))


def is_version_lost(run: SubjectRun) -> bool:
    """Whether the registry lacks the version that DVC takes for registered, or its parity check."""
    if "DVC_EXP_NAME" in run.env:
        return False  # an experiment never registers
    from dreambooth_core.pipeline import registered

    return not registered.is_complete(run.context("register"))


def _verdict_digest(run: SubjectRun) -> str:
    return files.digest_of(files.tree_hashes(run.places.verdict_dir))


def is_page_old(run: SubjectRun) -> bool:
    """Whether the page is missing or shows another verdict than the present one."""
    note = run.workspace.state / "report" / run.subject
    page = run.places.report_page
    return not (page.is_file() and note.is_file() and note.read_text() == _verdict_digest(run))


def note_page(run: SubjectRun) -> None:
    """Remember which verdict the page shows."""
    files.write_text(run.workspace.state / "report" / run.subject, _verdict_digest(run))
