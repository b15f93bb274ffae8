"""Records a finished run outside this machine: `runtime.commit_results` says how far."""

from __future__ import annotations

from dreambooth_core import files, locks
from dreambooth_core.pipeline import STAGES, registered
from dreambooth_core.pipeline.common import confirmation_of
from tasks import results_branch
from tasks.run import SubjectRun

_LOCK_TIMEOUT_S = 300.0


def record_results(run: SubjectRun) -> bool:
    """Commit dvc.lock and the scores of a subject to the branch of results; push data, then it.

    Returns whether there was something to commit. A repetition completes what a kill interrupted.
    Raises StageError; the next run tries again.
    """
    mode = run.settings().runtime.commit_results
    if mode is None:
        return False
    git = results_branch.open_branch(run.workspace.root, run.env, push=mode == "push")
    contents = _contents(run)
    if mode == "push":  # the data first, so that no commit names files that nobody else has
        stages = [run.staleness.key(stage) for stage in STAGES if stage != "report"]
        pointer = run.staleness.pointer
        targets = [*stages, pointer] if pointer else stages
        run.lock.retry_while_busy(lambda: run.dvc.push(*targets))
    is_new = results_branch.commit(git, run.subject, contents)
    if mode == "push":
        results_branch.push(git)
    return is_new


def _contents(run: SubjectRun) -> dict[str, str]:
    """The text of the files to commit, by path."""
    root, pointer = run.workspace.root, run.staleness.pointer
    with locks.hold(run.workspace.workspace_lock, timeout_s=_LOCK_TIMEOUT_S):
        names = ["dvc.lock", pointer] if pointer else ["dvc.lock"]
        texts = {name: (root / name).read_text(encoding="utf-8") for name in names}
    return {**texts, f"results/{run.subject}.json": _scores(run)}


def _scores(run: SubjectRun) -> str:
    """The version of the run, and its scores on fresh seeds."""
    context = run.context("register")
    version = registered.get(context)
    scores = confirmation_of(context).row(version.checkpoint).means()
    return files.pretty_json({**version.to_json(), "scores": scores})
