"""The Prefect tasks of a benchmark over many subjects: one per subject and checkpoint.

Each takes names and finds everything else in the folder of the benchmark.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import unmapped

from dreambooth_core import files, locks
from dreambooth_core.evaluation.paper_tables import SHIPPED
from dreambooth_core.logs import log_fields
from dreambooth_core.pipeline import dreambench
from dreambooth_core.pipeline.dreambench import Bench
from dreambooth_core.ports import no_progress
from dreambooth_core.supervision import stop_event
from dreambooth_core.workspace import Workspace
from tasks import ray_cluster
from tasks.device_slot import device_slot
from tasks.pipeline import is_worth_retrying
from tasks.progress import StageTime, finished, progress_of, this_flow_run

_LOCK_TIMEOUT_S = 10.0
_OPTIONS: Any = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 1,
    "retry_delay_seconds": 5,
    "retry_condition_fn": is_worth_retrying,
    "tags": ["device"],
}


@contextlib.contextmanager
def bench_run(
    root: Path, subjects_root: Path, out: Path, *, names: Sequence[str], num_ablated: int
) -> Iterator[Bench]:
    """Open the benchmark in `out`: check photos and settings, write the plan, hold the lock.

    Raises DataError for unusable subjects, and SettingsError if `out` has other results.
    """
    scratch = out / "store" / "validate"
    with (
        stop_event() as stop,
        locks.hold(out / "lock", timeout_s=_LOCK_TIMEOUT_S),
    ):
        files.remove_abandoned(out / "store")
        plan, _ = dreambench.plan_for(
            root, subjects_root, scratch=scratch, names=names, num_ablated=num_ablated
        )
        dreambench.store_plan(out, plan)
        yield Bench(root, out, plan, should_stop=stop.is_set)


def run_cases(bench: Bench, env: Mapping[str, str]) -> None:
    """Train and score every case that has not finished."""
    ended = _run_on_cluster(bench, env)
    for subject, condition in bench.plan.cases():
        began, is_done = time.monotonic(), bench.finished(subject, condition) is not None
        with log_fields(**this_flow_run(), subject=subject, stage=condition):
            if not is_done:
                device = bench.context(subject, condition).settings.compute.device
                with device_slot(Workspace(bench.root), env, device=device):
                    _run_case(bench, subject, condition)
            dreambench.remove_weights(bench.places(subject, condition))
            if (subject, condition) not in ended:
                name = f"{subject}, {condition}"
                finished(StageTime(name, time.monotonic() - began, skipped=is_done))


def _run_on_cluster(bench: Bench, env: Mapping[str, str]) -> set[tuple[str, str]]:
    """Let the Ray cluster, if there is one, run the cases; returns those that it has finished."""
    ended = set[tuple[str, str]]()

    def note(case: tuple[str, str], seconds: float) -> None:
        ended.add(case)
        finished(StageTime(", ".join(case), seconds, skipped=False))

    if left := [case for case in bench.plan.cases() if bench.finished(*case) is None]:
        with log_fields(**this_flow_run()), ray_cluster.joined(env) as cluster:
            if cluster is not None:
                context = bench.context(left[0][0], SHIPPED, progress_of("cases"))
                device = context.settings.compute.device
                with device_slot(Workspace(bench.root), env, device=device):
                    cluster.run_cases(context, bench, left, note)
    return ended


def _run_case(bench: Bench, subject: str, condition: str) -> None:
    train_case(bench, subject, condition)
    if condition == SHIPPED:
        _score_checkpoints(bench, subject)
        select_checkpoint(bench, subject)
    score_case(bench, subject, condition)


def _score_checkpoints(bench: Bench, subject: str) -> None:
    """Race the checkpoints of a subject, each round in mapped tasks."""
    from dreambooth_core.pipeline import evaluate  # loads the scorers' libraries

    def prepare(rows: Sequence[str], rounds: int) -> None:
        score_checkpoint.map(unmapped(bench), subject, list(rows), rounds).result()

    context = bench.context(subject, SHIPPED)
    evaluate.race(dataclasses.replace(context, progress=no_progress), prepare)


@task(name="train case", task_run_name="train {subject} {condition}", **_OPTIONS)
def train_case(bench: Bench, subject: str, condition: str) -> None:
    """Run the stages of a case up to the training; a retry resumes from the store."""
    progress = progress_of(f"{subject}, {condition}")
    dreambench.train(bench.context(subject, condition, progress))


@task(name="score checkpoint", task_run_name="score {row} of {subject}", **_OPTIONS)
def score_checkpoint(bench: Bench, subject: str, row: str, rounds: int) -> None:
    """Score the first rounds of a checkpoint and save them in the store."""
    from dreambooth_core.pipeline import evaluate

    progress = progress_of(f"{subject}, {row}")
    evaluate.score_row(bench.context(subject, SHIPPED, progress), row, rounds=rounds)


@task(name="select checkpoint", task_run_name="select {subject}", **_OPTIONS)
def select_checkpoint(bench: Bench, subject: str) -> None:
    """Publish the scores of all checkpoints, and select one."""
    dreambench.select(bench.context(subject, SHIPPED))


@task(name="score case", task_run_name="score {subject} {condition}", **_OPTIONS)
def score_case(bench: Bench, subject: str, condition: str) -> None:
    """Score the checkpoint of a case on fresh seeds."""
    dreambench.finish(bench, subject, condition, progress_of(f"{subject}, {condition}"))


@task(name="tables", **_OPTIONS)
def write_tables(bench: Bench) -> dict[str, Any]:
    """Write the tables; returns them with the files that hold them."""
    results = dreambench.write_results(bench)
    return {
        "results": str(bench.out / dreambench.RESULTS),
        "page": str(bench.out / dreambench.PAGE),
        "tables": [table.to_json() for table in results.tables],
    }
