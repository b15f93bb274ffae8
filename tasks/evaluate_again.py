"""Scores the registered versions of subjects again, after a change of scorers, suite or photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from dreambooth_core import config
from dreambooth_core.errors import DreamBoothError, StageError, Stopped
from dreambooth_core.workspace import Workspace
from tasks import pipeline
from tasks.run import SubjectRun, subject_run


def evaluate_all(
    root: Path, env: Mapping[str, str], subjects: Sequence[str] | None
) -> dict[str, Any]:
    """Score the versions of each subject, by default of all; one that fails stops no other.

    Raises StageError at the end, with the reasons.
    """
    names = subjects or sorted(config.load_settings(Workspace(root).params).subjects)
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            with subject_run(name, root, env, last="validate") as run:
                pipeline.validate(run)
                results[name] = score_versions(run)
        except Stopped:
            raise
        except DreamBoothError as error:
            failed[name] = str(error)
    for name, result in results.items():
        for version in result["versions"]:
            if version["state"] == "failed":
                failed[f"{name}, version {version['version']}"] = version["why"]
    if failed:
        raise StageError(
            "some versions could not be scored; the scores of the others are recorded",
            got="; ".join(f"{name}: {why}" for name, why in failed.items()),
            hint="run the same command again: it scores only those that are missing",
        )
    return {"subjects": results}


@task(
    name="score versions",
    task_run_name="score versions of {run.subject}",
    cache_policy=NO_CACHE,
    persist_result=False,
    tags=["device"],
)
def score_versions(run: SubjectRun) -> dict[str, Any]:
    """Score every version of a subject that the registry lacks with the present harness."""
    from dreambooth_core.pipeline import rescore  # torch

    context = run.context("evaluate again")
    with run.timed("evaluate again") as ran, run.device():
        found = rescore.run(context)
        ran.append(any(each.state == "scored" for each in found))
    return {
        "harness": rescore.label_of(context) if found else None,
        "versions": [
            {
                "version": each.version.version.version,
                "aliases": list(each.version.aliases),
                "state": each.state,
                "why": each.why,
                "before": dict(each.version.scores),
                "scores": each.row.means() if each.row else {},
            }
            for each in found
        ],
    }
