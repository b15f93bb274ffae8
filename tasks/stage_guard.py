"""The guard around every stage: ask DVC, run, check that nothing moved, commit.

DVC decides what is up to date; a flow and `dvc repro` may be mixed freely, even at the same time.
When another DVC process is at work on the subject, the flow lends it the subject's lock: what the
flow has finished lies in the store, so that process only publishes it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Self

from dreambooth_core import config, locks
from dreambooth_core.errors import StageError
from dreambooth_core.workspace import STAGES, Workspace
from tasks.dvc import Busy, Dvc, Status
from tasks.inputs import inputs_now, refuse_drift, settings_now
from tasks.photos import pointer_of

logger = logging.getLogger("dreambooth")

_SUBJECT_LOCK_TIMEOUT_S = 48 * 3600.0
_COMMIT_TIMEOUT_S = 120.0
_BUSY_POLL_S = 2.0
_ATTEMPTS = 5


class Guard:
    """Holds a subject for one run and knows which of its stages are stale."""

    def __init__(self, workspace: Workspace, subject: str, *, env: Mapping[str, str]) -> None:
        self.workspace, self.subject = workspace, subject
        self.dvc = Dvc(workspace, env=env)
        self.lock_fd: int | None = None
        self._lock = contextlib.ExitStack()
        self._stale: Status | None = None
        self._moved = False

    def __enter__(self) -> Self:
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
        self.lock_fd = None

    def _take(self) -> None:
        self.lock_fd = self._lock.enter_context(
            locks.hold(
                self.workspace.subject_lock(self.subject),
                timeout_s=_SUBJECT_LOCK_TIMEOUT_S,
                on_wait=lambda holder: logger.warning(
                    "waiting for %s, which works on %s", holder, self.subject
                ),
                inheritable=True,
            )
        )

    def _lend(self, reason: Busy) -> None:
        """Free the subject for a while, so that the DVC process that waits for it can go on."""
        logger.info("another DVC process is at work on %s: letting it go first", self.subject)
        logger.debug("%s", reason)
        self._lock.close()
        time.sleep(_BUSY_POLL_S)
        self._take()

    def is_stale(self, stage: str) -> bool:
        """Whether DVC would run the stage. DVC is asked once, and again after a stage has run."""
        if self._stale is None or (self._moved and self._key(stage) not in self._stale):
            self._stale, self._moved = self._ask(), False
        return self._key(stage) in self._stale

    def peek(self) -> set[str]:
        """The stages that are stale now, asked without holding the subject. Raises Busy."""
        stale = self._status()
        if self._pointer() in stale:
            return set(STAGES)
        return {stage for stage in STAGES if self._key(stage) in stale}

    def _key(self, stage: str) -> str:
        return f"{stage}@{self.subject}"

    def _status(self) -> Status:
        """What DVC says of the subject's stages and photos. Raises Busy."""
        pointer = self._pointer()
        stages = [self._key(stage) for stage in STAGES]
        return self.dvc.status([*stages, pointer] if pointer else stages)

    def _ask(self) -> Status:
        while True:
            try:
                return self._status()
            except Busy as busy:
                self._lend(busy)

    def run(
        self, stage: str, work: Callable[[], object], *, is_lost: Callable[[], bool] = lambda: False
    ) -> bool:
        """Bring a stage up to date; False when it was already. Raises what `work` raises.

        `is_lost` says whether a product that DVC does not know (a version, a page) is missing.
        """
        for _ in range(_ATTEMPTS):
            if not self.is_stale(stage) and not is_lost():
                return False
            settings = settings_now(self.workspace, self.subject, stage)
            inputs = inputs_now(self.workspace, self.subject, stage)
            work()
            if self._commit(stage, settings, inputs):
                return True
        raise StageError(
            f"{stage} of {self.subject} could not be recorded in {_ATTEMPTS} attempts, because "
            "another DVC process removed its output each time",
            hint="stop the other `dvc repro` and run again",
        )

    def _commit(self, stage: str, settings: dict[str, object], inputs: dict[str, str]) -> bool:
        """Record the stage; False when another DVC process was faster and has to be asked."""
        try:
            with locks.hold(self.workspace.workspace_lock, timeout_s=_COMMIT_TIMEOUT_S):
                refuse_drift(stage, settings, settings_now(self.workspace, self.subject, stage))
                refuse_drift(stage, dict(inputs), dict(self._inputs(stage)))
                if not self._is_there(stage):
                    self._stale = None
                    return False
                self.dvc.commit_unlocked(self._key(stage))
        except Busy as busy:
            self._stale = None
            self._lend(busy)
            return False
        if self._stale is not None:
            self._stale.pop(self._key(stage), None)
        self._moved = True
        return True

    def _inputs(self, stage: str) -> dict[str, str]:
        return inputs_now(self.workspace, self.subject, stage)

    def _is_there(self, stage: str) -> bool:
        return stage == "report" or self.workspace.stage_dir(self.subject, stage).is_dir()

    def commit_photos(self) -> None:
        """Bring the photos' .dvc file up to date with what the gate has seen."""
        pointer = self._pointer()
        if pointer is None or pointer not in (self._stale or {}):
            return
        while True:
            try:
                self.dvc.commit(pointer)
                return
            except Busy as busy:
                self._lend(busy)

    def _pointer(self) -> str | None:
        """The .dvc file of the subject's photos, as DVC names it."""
        view = config.load_view(self.workspace, self.subject)
        pointer = pointer_of(self.workspace.resolve(view.subject.instance_dir))
        if not pointer.is_file() or not pointer.is_relative_to(self.workspace.root):
            return None
        return pointer.relative_to(self.workspace.root).as_posix()
