"""The Prefect tasks of a subject's run: one per stage, around `dreambooth_core.pipeline`.

Tasks that write files never use Prefect's result cache, because DVC decides what is up to date.
Stages run in the main thread, the only one that Prefect can interrupt; only evaluation rows are
mapped to other threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import unmapped

from dreambooth_core import pipeline
from dreambooth_core.errors import DataError, SettingsError, Stopped
from dreambooth_core.pipeline.full_disk import full_disk_explained
from dreambooth_core.ports import no_progress
from dreambooth_core.records import Scores, Selection, Verdict
from tasks import artifacts, events, ray_cluster, results, retention
from tasks.run import SubjectRun
from tasks.stage_guard import bring_up_to_date, commit_photos

_HOUR = 3600
_ON_DEVICE = ("class-images", "cache", "train", "confirm", "register")

ROW_RUNNER: Any = ThreadPoolTaskRunner(max_workers=1)
"""Runs the mapped rows, with one worker per device of the process."""


def is_worth_retrying(_task: object, _run: TaskRun, state: State[Any]) -> bool:
    """Whether a retry may help: not for wrong input, wrong settings or a stop."""
    try:
        state.result()
    except (SettingsError, DataError, Stopped):
        return False
    except Exception:  # anything else may be the machine's fault
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
        "retry_condition_fn": is_worth_retrying,
        "tags": tags or [],
    }


def _run_stage(
    run: SubjectRun,
    stage: str,
    *,
    prepare: Callable[[SubjectRun], None] | None = None,
    show: Callable[[SubjectRun], None] | None = None,
    is_lost: Callable[[], bool] = lambda: False,
) -> State[Any]:
    """Bring a stage up to date, then publish its artifact. `prepare` runs only if it is stale."""

    def work() -> None:
        with run.device() if stage in _ON_DEVICE else contextlib.nullcontext():
            if prepare is not None:
                prepare(run)
            pipeline.run_stage(run.context(stage), stage)

    with run.timed(stage) as ran:
        ran.append(bring_up_to_date(run, stage, work, is_lost=is_lost))
        if show is not None:
            show(run)
    return _state(stage, ran=ran[0])


def _state(stage: str, *, ran: bool) -> State[Any]:
    if ran:
        return Completed(message=f"{stage} ran")
    return Completed(name="UpToDate", message=f"{stage} is up to date")


@task(**_options("validate", hours=1))
def validate(run: SubjectRun) -> State[Any]:
    """Check the photos, then update their .dvc file to the checked ones."""
    state = _run_stage(run, "validate", show=artifacts.gate_report)
    commit_photos(run)
    return state


@task(**_options("class-images", hours=12, retries=1, tags=["device"]))
def class_images(run: SubjectRun) -> State[Any]:
    """Generate the class images with the base model."""
    return _run_stage(run, "class-images", prepare=_spread_class_images)


def _spread_class_images(run: SubjectRun) -> None:
    """Let the Ray cluster, if there is one, complete the class images in the store."""
    with ray_cluster.joined(run.env) as cluster:
        if cluster is not None:
            cluster.complete_class_images(run.context("class-images"))


@task(**_options("cache", hours=6, retries=1, tags=["device"]))
def cache(run: SubjectRun) -> State[Any]:
    """Cache the VAE moments of all images and the embeddings of all prompts."""
    return _run_stage(run, "cache")


@task(**_options("train", hours=96, retries=1, tags=["device"]))
def train(run: SubjectRun) -> State[Any]:
    """Train in separate processes; a retry resumes from the store."""
    return _run_stage(run, "train")


# No timeout: Prefect cannot interrupt a worker thread, and would warn for every row.
_SCORE = {
    **_options("score", hours=None, retries=1, tags=["device"]),
    "task_run_name": "score {row}",
}


@task(**_SCORE)
def score_row(row: str, rounds: int, run: SubjectRun) -> None:
    """Score the first rounds of a row of the table and save them in the store."""
    from dreambooth_core.pipeline import evaluate

    evaluate.score_row(run.context(f"score {row}"), row, rounds=rounds)


def evaluate(run: SubjectRun) -> State[Any]:
    """Race the rows, each round in mapped tasks, then gather them."""

    def work() -> None:
        from dreambooth_core.pipeline import evaluate  # torch, which an idle run does not need

        with run.device():
            with ray_cluster.joined(run.env) as cluster:

                def prepare(rows: Sequence[str], rounds: int) -> None:
                    if cluster is not None:
                        cluster.score_rows(run.context("evaluate"), rows, rounds)
                    else:
                        score_row.map(list(rows), unmapped(rounds), unmapped(run)).result()

                context = dataclasses.replace(run.context("evaluate"), progress=no_progress)
                evaluate.race(context, prepare)
            gather_scores(run)

    with run.timed("evaluate") as ran:
        ran.append(bring_up_to_date(run, "evaluate", work))
    return show_scores(run, ran=ran[0])


@task(**_options("gather scores", hours=12, retries=1))
def gather_scores(run: SubjectRun) -> None:
    """Publish the scored rows."""
    silent = dataclasses.replace(run.context("evaluate"), progress=no_progress)
    pipeline.run_stage(silent, "evaluate")


@task(**_options("evaluate", hours=1))
def show_scores(run: SubjectRun, *, ran: bool) -> State[Any]:
    """Publish the score table and the grid as artifacts."""
    artifacts.score_table(run)
    artifacts.picture_grid(run)
    return _state("evaluate", ran=ran)


@task(**_options("select", hours=1))
def select(run: SubjectRun) -> State[Any]:
    """Select the best checkpoint."""
    return _run_stage(run, "select")


@task(**_options("confirm", hours=12, retries=1, tags=["device"]))
def confirm(run: SubjectRun) -> State[Any]:
    """Score the selected checkpoint on seeds that selected nothing."""
    return _run_stage(run, "confirm")


@task(**_options("drop unselected", hours=1, retries=1))
def drop_unselected(run: SubjectRun) -> State[Any]:
    """Keep only the selected checkpoint of the training, unless the settings keep all."""
    with full_disk_explained(run.places, "train"):
        ran = retention.drop_unselected(run)
    return _state("drop unselected", ran=ran)


@task(**_options("register", hours=6, retries=2))
def register(run: SubjectRun) -> State[Any]:
    """Register the best checkpoint, unless DVC and the registry both have it."""
    return _run_stage(run, "register", is_lost=lambda: _is_version_lost(run))


@task(**_options("compare", hours=12, retries=2))
def compare(run: SubjectRun) -> Verdict:
    """Compare challenger and champion; never skipped, as DVC does not track the champion."""
    from dreambooth_core.pipeline import compare

    with run.timed("compare") as ran, run.device():
        verdict = compare.run(run.context("compare"))
        ran.append(True)
    if verdict.promote:
        _report_champion(run, verdict)
    artifacts.verdict(run, verdict)
    return verdict


def _report_champion(run: SubjectRun, verdict: Verdict) -> None:
    from dreambooth_core.pipeline import registered

    info = registered.info_of(run.context("compare"))
    if info is not None:
        previous = verdict.champion and int(verdict.champion.rpartition("/")[2])
        events.report_champion(
            run.subject, info, previous=previous or None, how="comparison", why=verdict.why
        )


@task(**_options("report", hours=1))
def report(run: SubjectRun) -> State[Any]:
    """Render the report, also after a new verdict."""
    return _run_stage(run, "report", show=artifacts.page, is_lost=lambda: not _is_page_current(run))


@task(**_options("record results", hours=6, retries=2))
def record_results(run: SubjectRun) -> State[Any]:
    """Commit and push the results, if the settings say so."""
    return _state("record results", ran=results.record_results(run))


def _is_version_lost(run: SubjectRun) -> bool:
    """Whether the registry lacks the recorded version or its parity check."""
    from dreambooth_core.pipeline import registered

    context = run.context("register")
    return not context.is_experiment and not registered.is_complete(context)


def _is_page_current(run: SubjectRun) -> bool:
    from dreambooth_core.pipeline import report

    return report.is_current(run.context("report"))


_TASKS: dict[str, Callable[[SubjectRun], object]] = {
    "validate": validate,
    "class-images": class_images,
    "cache": cache,
    "train": train,
    "evaluate": evaluate,
    "select": select,
    "confirm": confirm,
    "register": register,
    "report": report,
}


def run_up_to(run: SubjectRun, last: str) -> None:
    """Run the tasks of all stages up to and including `last`."""
    for stage in pipeline.STAGES[: pipeline.STAGES.index(last) + 1]:
        _TASKS[stage](run)


def summarize_stages(run: SubjectRun) -> dict[str, Any]:
    """The stages of a run, whether each was skipped, and its seconds, as plain JSON."""
    return {
        "subject": run.subject,
        "stages": [
            {"stage": time.stage, "seconds": round(time.seconds, 2), "skipped": time.skipped}
            for time in run.times
        ],
    }


def summarize(run: SubjectRun, verdict: Verdict | None) -> dict[str, Any]:
    """The summary of a finished run as plain JSON."""
    from dreambooth_core.pipeline import registered

    version = registered.find(run.context("register"))
    return {
        **summarize_stages(run),
        "scores": Scores.read(run.places.stage_dir("evaluate"), "scores.json").to_json(),
        "selection": Selection.read(run.places.stage_dir("select")).to_json(),
        "version": version.to_json() if version else None,
        "verdict": verdict.to_json() if verdict else None,
        "report": str(run.places.report_page),
        "prompt": run.settings().subject.instance_prompt,
        "tracking_uri": run.store,
        "mlflow_run": registered.training_run(run.context("register")),
    }
