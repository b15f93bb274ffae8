"""The tasks of a subject's run: one per stage, thin shells around `dreambooth_core.pipeline`.

Tasks that write files never use Prefect's result cache: DVC says what is up to date. Stages run in
the main thread, which alone can be interrupted; only the rows of the evaluation are mapped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import unmapped

from dreambooth_core import files, pipeline
from dreambooth_core.errors import DataError, SettingsError, Stopped
from dreambooth_core.ports import no_progress
from dreambooth_core.records import Scores, Selection, Verdict
from tasks import artifacts
from tasks.run import SubjectRun
from tasks.stage_guard import bring_up_to_date, commit_photos

_HOUR = 3600

ROW_RUNNER: Any = ThreadPoolTaskRunner(max_workers=1)
"""Runs the mapped rows: as many workers as devices that one process works on."""


def _is_worth_retrying(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Wrong input, wrong settings and a wished stop stay what they are, however often tried."""
    try:
        state.result()
    except (SettingsError, DataError, Stopped):
        return False
    except Exception:  # whatever else failed may be the machine's fault
        return True
    return False


def _options(
    stage: str, *, hours: float | None, retries: int = 0, tags: list[str] | None = None
) -> Any:
    return {
        "name": stage,
        "task_run_name": f"{stage} {{run.subject}}",
        "cache_policy": NO_CACHE,
        "persist_result": False,
        "timeout_seconds": None if hours is None else int(hours * _HOUR),
        "retries": retries,
        "retry_delay_seconds": [5, 30][:retries] or None,
        "retry_condition_fn": _is_worth_retrying,
        "tags": tags or [],
    }


def _run_stage(
    run: SubjectRun,
    stage: str,
    *,
    show: Callable[[SubjectRun], None] | None = None,
    is_lost: Callable[[], bool] = lambda: False,
) -> State[Any]:
    """Bring a stage up to date, then publish its artifact."""

    def work() -> None:
        pipeline.run_stage(run.context(stage), stage)

    with run.timed(stage) as ran:
        ran.append(bring_up_to_date(run, stage, work, is_lost=is_lost))
        if show is not None:
            show(run)
    return _state(stage, ran=ran[0])


def _state(stage: str, *, ran: bool) -> State[Any]:
    if ran:
        return Completed(message=f"{stage} ran")
    return Completed(name="UpToDate", message=f"{stage} was up to date: nothing to do")


@task(**_options("validate", hours=1))
def validate(run: SubjectRun) -> State[Any]:
    """The data gate; afterwards the photos' .dvc file names what the gate has seen."""
    state = _run_stage(run, "validate", show=artifacts.gate_report)
    commit_photos(run)
    return state


@task(**_options("class-images", hours=12, retries=1, tags=["device"]))
def class_images(run: SubjectRun) -> State[Any]:
    """The images of the ordinary class, made by the base model."""
    return _run_stage(run, "class-images")


@task(**_options("cache", hours=6, retries=1, tags=["device"]))
def cache(run: SubjectRun) -> State[Any]:
    """The VAE moments of all images and the embeddings of all prompts."""
    return _run_stage(run, "cache")


@task(**_options("train", hours=96, retries=1, tags=["device"]))
def train(run: SubjectRun) -> State[Any]:
    """The training, in a process group of its own; a retry resumes from the store."""
    return _run_stage(run, "train")


# No time limit: Prefect cannot interrupt a worker thread, and says so for every row.
_SCORE = {
    **_options("score", hours=None, retries=1, tags=["device"]),
    "task_run_name": "score {row}",
}


@task(**_SCORE)
def score_row(row: str, run: SubjectRun) -> None:
    """One row of the score table, into the score store."""
    from dreambooth_core.pipeline import evaluate

    evaluate.score_row(run.context(f"score {row}"), row)


def evaluate(run: SubjectRun) -> State[Any]:
    """Score every row, mapped, then gather them; all inside the stage's guard."""

    from dreambooth_core.pipeline import evaluate

    def work() -> None:
        rows = evaluate.rows_to_score(run.context("evaluate"))
        score_row.map(list(rows), unmapped(run)).result()
        gather_scores(run)

    with run.timed("evaluate") as ran:
        ran.append(bring_up_to_date(run, "evaluate", work))
    return show_scores(run, ran=ran[0])


@task(**_options("gather scores", hours=12, retries=1))
def gather_scores(run: SubjectRun) -> None:
    """Publish the rows that the score store now holds."""
    silent = dataclasses.replace(run.context("evaluate"), progress=no_progress)
    pipeline.run_stage(silent, "evaluate")


@task(**_options("evaluate", hours=1))
def show_scores(run: SubjectRun, *, ran: bool) -> State[Any]:
    """The score table and the grid as artifacts."""
    artifacts.score_table(run)
    artifacts.picture_grid(run)
    return _state("evaluate", ran=ran)


@task(**_options("select", hours=1))
def select(run: SubjectRun) -> State[Any]:
    """The best checkpoint by the rule."""
    return _run_stage(run, "select")


@task(**_options("register", hours=6, retries=2))
def register(run: SubjectRun) -> State[Any]:
    """The best checkpoint as a version; DVC and the registry are both asked."""
    return _run_stage(run, "register", is_lost=lambda: _is_version_lost(run))


@task(**_options("compare", hours=12, retries=2))
def compare(run: SubjectRun) -> Verdict:
    """Challenger against champion; never skipped, as the champion is the registry's own."""
    from dreambooth_core.pipeline import compare

    with run.timed("compare") as ran:
        verdict = compare.run(run.context("compare"))
        ran.append(True)
    artifacts.verdict(run, verdict)
    return verdict


@task(**_options("report", hours=1))
def report(run: SubjectRun) -> State[Any]:
    """The page; also made anew when the verdict has changed since."""
    state = _run_stage(run, "report", is_lost=lambda: _is_page_outdated(run))
    files.write_text(_page_note(run), _verdict_digest(run))
    return state


def _is_version_lost(run: SubjectRun) -> bool:
    """Whether the registry lacks the recorded version or its parity check."""
    from dreambooth_core.pipeline import registered

    context = run.context("register")
    return not context.is_experiment and not registered.is_complete(context)


def _is_page_outdated(run: SubjectRun) -> bool:
    """Whether the page is missing or shows an earlier verdict."""
    note = _page_note(run)
    is_there = run.places.report_page.is_file() and note.is_file()
    return not is_there or note.read_text() != _verdict_digest(run)


def _page_note(run: SubjectRun) -> Path:
    """The file with the digest of the verdict that the page shows."""
    return run.workspace.state / "report" / run.subject


def _verdict_digest(run: SubjectRun) -> str:
    return files.digest_of(files.tree_hashes(run.places.verdict_dir))


def summarize(run: SubjectRun, verdict: Verdict | None) -> dict[str, Any]:
    """The summary of a finished run as plain JSON."""
    from dreambooth_core.pipeline import registered

    version = registered.find(run.context("register"))
    return {
        "subject": run.subject,
        "scores": Scores.read(run.places.stage_dir("evaluate"), "scores.json").to_json(),
        "selection": Selection.read(run.places.stage_dir("select")).to_json(),
        "version": version.to_json() if version else None,
        "verdict": verdict.to_json() if verdict else None,
        "report": str(run.places.report_page),
        "tracking_uri": run.env.get("MLFLOW_TRACKING_URI"),
        "stages": [
            {"stage": time.stage, "seconds": round(time.seconds, 2), "skipped": time.skipped}
            for time in run.times
        ],
    }
