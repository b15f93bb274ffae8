"""One run of one subject: what its tasks share."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from prefect.runtime import flow_run

from dreambooth_core import config, files
from dreambooth_core.config import SubjectView
from dreambooth_core.config.changes import Changes, changed_view
from dreambooth_core.logs import log_fields, logged_to, logger
from dreambooth_core.masking import without_secrets
from dreambooth_core.pipeline import StageContext, input_checks
from dreambooth_core.pipeline.common import FLOW_RUN
from dreambooth_core.pipeline.full_disk import full_disk_explained
from dreambooth_core.ports import Progress
from dreambooth_core.supervision import stop_event
from dreambooth_core.workspace import STAGES, Workspace
from tasks import photos, results_branch
from tasks.device_slot import device_slot, is_lasting
from tasks.dvc import Dvc
from tasks.progress import StageTime, finished, is_logged, progress_of, this_flow_run
from tasks.run_progress import ProgressArtifact, ProgressNote, noted
from tasks.staleness import Staleness, refuse_the_impossible
from tasks.subject_lock import SubjectLock
from tasks.this_run import applied


class SubjectRun:
    """The subject's settings, lock, staleness and stop event; passed to every task of a flow run.

    Not a dataclass: Prefect walks through those (and copies them) in search of futures.
    """

    def __init__(
        self,
        workspace: Workspace,
        lock: SubjectLock,
        *,
        stop: threading.Event,
        env: Mapping[str, str],
        note: ProgressNote,
    ) -> None:
        self.workspace, self.lock, self.stop, self.env = workspace, lock, stop, env
        self._note = note
        self._artifact = ProgressArtifact(lock.subject) if FLOW_RUN in env else None
        self.subject = lock.subject
        self.places = workspace.places(self.subject)
        self.store = without_secrets(env.get("MLFLOW_TRACKING_URI") or "mlflow.db")
        """The MLflow store for summaries and artifacts, which Prefect saves."""
        self.dvc = Dvc(workspace, env=env)
        self._loaded: tuple[bytes, SubjectView] | None = None
        self.staleness = Staleness(workspace, self.settings(), self.dvc)
        self.times: list[StageTime] = []

    def settings(self) -> SubjectView:
        """The settings as params.yaml holds them now; parsed again only after a change."""
        params = self.workspace.params.read_bytes()
        if self._loaded is None or self._loaded[0] != params:
            self._loaded = params, config.load_view(self.workspace, self.subject)
        return self._loaded[1]

    def context(self, stage: str) -> StageContext:
        """The context for a stage of this run."""
        return StageContext(
            self.settings(),
            self.places,
            progress=self._progress(stage),
            should_stop=self.stop.is_set,
            lock_fd=self.lock.fd,
            env=self.env,
        )

    def device(self) -> contextlib.AbstractContextManager[None]:
        """The slot of the accelerator, held while the block works."""
        device = self.settings().compute.device
        return device_slot(self.workspace, self.env, device=device)

    def _progress(self, stage: str) -> Progress:
        others = [self._note] if self._artifact is None else [self._note, self._artifact]
        return progress_of(stage, *(each.progress(stage) for each in others))

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[list[bool]]:
        """Measure a stage; the block appends to the yielded list whether the stage ran."""
        start, ran = time.monotonic(), list[bool]()
        with log_fields(stage=stage):
            with full_disk_explained(self.places, stage):
                yield ran
            taken = StageTime(stage, time.monotonic() - start, skipped=not any(ran))
            self.times.append(taken)
            finished(taken)


def log_warnings(workspace: Workspace, view: SubjectView) -> None:
    """Log unexpected consequences of the settings, unless the command line has shown them."""
    if is_logged():
        for text in input_checks.warnings(workspace.root, view):
            logger.warning("%s", text)


@contextlib.contextmanager
def subject_run(
    subject: str,
    root: Path,
    env: Mapping[str, str],
    changes: Changes | None = None,
    *,
    last: str = STAGES[-1],
) -> Iterator[SubjectRun]:
    """Open a run: check the settings, lock the subject, apply `changes`, restore its photos."""
    # MLflow takes seconds to import.
    from dreambooth_core.pipeline.registered import end_abandoned_runs, require_store

    workspace = Workspace(root)
    # Report wrong settings, and what this machine cannot do, before anything starts.
    view = changed_view(workspace, subject, changes or {}, source="changes")
    refuse_the_impossible(workspace, view, env=env, last=last)
    require_store(workspace, env)
    if view.runtime.commit_results is not None and last == STAGES[-1]:
        results_branch.open_branch(root, env, push=view.runtime.commit_results == "push")
    log_warnings(workspace, view)
    files.remove_abandoned(workspace.state)
    files.remove_abandoned(workspace.root, levels=0)  # of params.yaml and the like
    with (
        log_fields(subject=subject, **this_flow_run()),
        logged_to(workspace.run_log(subject)),
        stop_event() as stop,
        SubjectLock(workspace, subject) as lock,
        noted(workspace, subject=subject, run=str(flow_run.id or "")) as note,
        applied(workspace, subject, changes or {}),
    ):
        env = {**env, **_flow_run(workspace, env)}
        run = SubjectRun(workspace, lock, stop=stop, env=env, note=note)
        end_abandoned_runs(run.context("train"))
        photos.restore(workspace, run.settings(), run.dvc)
        with _end_logged():
            yield run


@contextlib.contextmanager
def _end_logged() -> Iterator[None]:
    """Log what ended the run, if it was not its own end."""
    try:
        yield
    except BaseException as error:
        logger.error("the run failed: %s", str(error) or type(error).__name__)
        raise
    logger.info("the run is complete")


def _flow_run(workspace: Workspace, env: Mapping[str, str]) -> dict[str, str]:
    """The address of the present flow run, if its server is one that stays."""
    if not flow_run.id or not is_lasting(workspace, env):
        return {}
    return {FLOW_RUN: without_secrets(flow_run.ui_url)}
