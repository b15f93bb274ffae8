"""One run of one subject: what its tasks share while it lasts."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from dreambooth_core import config
from dreambooth_core.config import SubjectView
from dreambooth_core.pipeline import StageContext
from dreambooth_core.supervision import stop_event
from dreambooth_core.workspace import Workspace
from tasks import photos
from tasks.planning import refuse_the_impossible
from tasks.progress import StageTime, current
from tasks.stage_guard import Guard


class SubjectRun:
    """The subject, its guard and its stop flag; passed to every task of a flow run.

    No dataclass: Prefect walks through those (and copies them) in search of futures.
    """

    def __init__(
        self, workspace: Workspace, guard: Guard, *, stop: threading.Event, env: Mapping[str, str]
    ) -> None:
        self.workspace, self.guard, self.stop, self.env = workspace, guard, stop, env
        self.subject = guard.subject
        self.places = workspace.places(guard.subject)
        self.times: list[StageTime] = []

    def view(self) -> SubjectView:
        """The subject's settings as params.yaml holds them now."""
        return config.load_view(self.workspace, self.subject)

    def context(self, stage: str) -> StageContext:
        """The context that a stage of this run works in."""
        return StageContext(
            self.view(),
            self.places,
            progress=current().progress(stage),
            should_stop=self.stop.is_set,
            lock_fd=self.guard.lock_fd,
            env=self.env,
        )

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[list[bool]]:
        """Note how long a stage took; append to the list whether it ran."""
        start, ran = time.monotonic(), list[bool]()
        yield ran
        taken = StageTime(stage, time.monotonic() - start, skipped=not any(ran))
        self.times.append(taken)
        current().finished(taken)


@contextlib.contextmanager
def subject_run(subject: str, root: Path, env: Mapping[str, str]) -> Iterator[SubjectRun]:
    """Open a run: check the settings, take the subject's lock, put its photos in place."""
    workspace = Workspace(root)
    # Wrong settings, and what this machine cannot do, are told before anything is started.
    refuse_the_impossible(workspace, config.load_view(workspace, subject), env=env)
    with stop_event() as stop, Guard(workspace, subject, env=env) as guard:
        photos.restore(workspace, subject, guard.dvc)
        yield SubjectRun(workspace, guard, stop=stop, env=env)
