"""One run of one subject: what its tasks share."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

from dreambooth_core import config, files
from dreambooth_core.config import SubjectView
from dreambooth_core.config.changes import Changes, changed_view
from dreambooth_core.masking import without_secrets
from dreambooth_core.pipeline import StageContext, input_checks
from dreambooth_core.pipeline.common import FLOW_RUN
from dreambooth_core.pipeline.full_disk import full_disk_explained
from dreambooth_core.supervision import stop_event
from dreambooth_core.workspace import STAGES, Workspace
from tasks import photos
from tasks.dvc import Dvc
from tasks.progress import StageTime, current, is_logged
from tasks.staleness import Staleness, refuse_the_impossible
from tasks.subject_lock import SubjectLock
from tasks.this_run import applied

logger = logging.getLogger("dreambooth")


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
    ) -> None:
        self.workspace, self.lock, self.stop, self.env = workspace, lock, stop, env
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
            progress=current().progress(stage),
            should_stop=self.stop.is_set,
            lock_fd=self.lock.fd,
            env=self.env,
        )

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[list[bool]]:
        """Measure a stage; the block appends to the yielded list whether the stage ran."""
        start, ran = time.monotonic(), list[bool]()
        with full_disk_explained(self.places, stage):
            yield ran
        taken = StageTime(stage, time.monotonic() - start, skipped=not any(ran))
        self.times.append(taken)
        current().finished(taken)


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
    log_warnings(workspace, view)
    files.remove_abandoned(workspace.state)
    files.remove_abandoned(workspace.root, levels=0)  # of params.yaml and the like
    with (
        stop_event() as stop,
        SubjectLock(workspace, subject) as lock,
        applied(workspace, subject, changes or {}),
    ):
        run = SubjectRun(workspace, lock, stop=stop, env={**env, **_flow_run(workspace, env)})
        end_abandoned_runs(run.context("train"))
        photos.restore(workspace, run.settings(), run.dvc)
        yield run


def _flow_run(workspace: Workspace, env: Mapping[str, str]) -> dict[str, str]:
    """The address of the present flow run, if its server is one that stays."""
    api = PREFECT_API_URL.value()
    if not flow_run.id or api not in (env.get("PREFECT_API_URL"), workspace.service("prefect_api")):
        return {}
    return {FLOW_RUN: without_secrets(flow_run.ui_url)}
