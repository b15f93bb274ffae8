"""`dreambooth save`: asks the training of a subject to save at its present step."""

from __future__ import annotations

import contextlib
import json

from dreambooth_core.errors import StageError
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace
from tasks import run_progress

_TIMEOUT_S = 600.0
"""A step with many micro-steps takes minutes, and so does a large state on a slow disk."""
_POLL_S = 0.2


def save_now(workspace: Workspace, subject: str, *, timeout_s: float = _TIMEOUT_S) -> int:
    """Return the step that is on disk. Raises StageError if no training answers."""
    request = workspace.save_request(subject)
    answer = request.with_suffix(".json")
    _require_training(workspace, subject)
    request.parent.mkdir(parents=True, exist_ok=True)
    answer.unlink(missing_ok=True)
    request.touch()
    try:
        wait_until(
            lambda: answer.exists() or not _is_training(workspace, subject),
            timeout_s=timeout_s,
            every_s=_POLL_S,
        )
        with contextlib.suppress(FileNotFoundError):
            return json.loads(answer.read_bytes())["step"]
    finally:
        request.unlink(missing_ok=True)
    _require_training(workspace, subject)
    raise StageError(
        f"the training of {subject} has not saved",
        got=f"no answer for {timeout_s:.0f} s",
        hint=f"dreambooth status {subject}",
    )


def _require_training(workspace: Workspace, subject: str) -> None:
    if not _is_training(workspace, subject):
        found = run_progress.read(workspace, subject)
        raise StageError(
            f"no training of {subject} is in progress, so there is nothing to save",
            got=f"stage {found.stage}" if found else "no run",
            hint="every stage keeps what it has done; the next run continues it",
        )


def _is_training(workspace: Workspace, subject: str) -> bool:
    found = run_progress.read(workspace, subject)
    return found is not None and found.stage == "train"
