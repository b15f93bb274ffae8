"""How far a run is: a note in the store, and an artifact in Prefect while a server keeps it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast
from uuid import UUID

import psutil

from dreambooth_core import files, locks
from dreambooth_core.logs import logger
from dreambooth_core.ports import Progress, Throttle
from dreambooth_core.workspace import Workspace

_NOTE_EVERY_S = 1.0
_ARTIFACT_EVERY_S = 10.0


@dataclass(frozen=True)
class RunProgress:
    """How far the present stage of a subject's run is; times are seconds since 1970."""

    subject: str
    stage: str
    done: int
    total: int
    text: str
    """The rest of the progress line, such as loss and rate of a training."""
    run: str
    """The id of the flow run; empty outside of a flow."""
    process: int
    began: float
    updated: float


def read(workspace: Workspace, subject: str) -> RunProgress | None:
    """How far the run of a subject is; None if none is in progress, or it has not said yet."""
    if locks.holder_of(workspace.subject_lock(subject)) is None:
        return None
    try:
        return RunProgress(**json.loads(workspace.run_progress(subject).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def memory_of(process: int) -> int:
    """Bytes in RAM of a process and all its descendants, such as a run and its trainers."""
    try:
        first = psutil.Process(process)
        family = [first, *first.children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(_resident(each) for each in family)


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


class ProgressNote:
    """Keeps the note of one run."""

    def __init__(self, path: Path, *, subject: str, run: str) -> None:
        self._path, self._subject, self._run = path, subject, run
        self._throttle = Throttle(_NOTE_EVERY_S)
        self._stage, self._began = "", 0.0

    def progress(self, stage: str) -> Progress:
        """The Progress of a stage, which rewrites the note every second."""

        def show(done: int, total: int, text: str = "") -> None:
            is_new = stage != self._stage
            if is_new:
                self._stage, self._began = stage, time.time()
            if self._throttle.is_due() or is_new:
                self._write(stage, done, total, text)

        return show

    def _write(self, stage: str, done: int, total: int, text: str) -> None:
        note = RunProgress(
            subject=self._subject,
            stage=stage,
            done=done,
            total=total,
            text=text,
            run=self._run,
            process=os.getpid(),
            began=self._began,
            updated=time.time(),
        )
        with contextlib.suppress(OSError):  # a full disk ends the stage, not the note of it
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self._path, asdict(note))


@contextlib.contextmanager
def noted(workspace: Workspace, *, subject: str, run: str) -> Iterator[ProgressNote]:
    """Keep the note of a run, and remove it at its end."""
    path = workspace.run_progress(subject)
    try:
        yield ProgressNote(path, subject=subject, run=run)
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


class ProgressArtifact:
    """Keeps a progress artifact per stage; a server that does not answer ends that, not the run."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._ids: dict[str, UUID] = {}
        self._throttle = Throttle(_ARTIFACT_EVERY_S)
        self._fails = False

    def progress(self, stage: str) -> Progress:
        """The Progress of a stage, which updates its artifact every ten seconds."""

        def show(done: int, total: int, text: str = "") -> None:
            if self._fails or not total or not (done == total or self._throttle.is_due()):
                return
            try:
                self._update(stage, 100 * done / total, f"{done} of {total} {text}".rstrip())
            except Exception as error:
                self._fails = True
                logger.warning("Prefect takes no progress any more: %s", type(error).__name__)

        return show

    def _update(self, stage: str, percent: float, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if stage in self._ids:
            update_progress_artifact(self._ids[stage], percent, text)
        else:
            key = f"{self._subject.replace('_', '-')}-{stage}-progress"
            created = create_progress_artifact(percent, key, text)
            self._ids[stage] = cast(UUID, created)  # a coroutine only inside of one
