"""`dreambooth save` without a training to save."""

from __future__ import annotations

import json
import threading

import pytest

from cli import saving
from dreambooth_core import locks
from dreambooth_core.errors import StageError
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace
from tasks.run_progress import ProgressNote


def note(workspace: Workspace, stage: str) -> None:
    path = workspace.run_progress("mug")
    ProgressNote(path, subject="mug", run="").progress(stage)(3, 10)


def test_save_needs_a_training_in_progress(tmp_path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(StageError, match=r"no training of mug is in progress.*found: no run"):
        saving.save_now(workspace, "mug")
    with locks.hold(workspace.subject_lock("mug"), timeout_s=1):
        note(workspace, "evaluate")
        with pytest.raises(StageError, match="found: stage evaluate"):
            saving.save_now(workspace, "mug")
        note(workspace, "train")
        with pytest.raises(StageError, match="has not saved; found: no answer for 0 s"):
            saving.save_now(workspace, "mug", timeout_s=0.1)
    assert not workspace.save_request("mug").exists()


def test_save_returns_the_step_that_the_training_answers(tmp_path) -> None:
    workspace = Workspace(tmp_path)
    request = workspace.save_request("mug")

    def answer() -> None:
        wait_until(request.exists, timeout_s=30, every_s=0.01)
        request.with_suffix(".json").write_text(json.dumps({"step": 57}))

    with locks.hold(workspace.subject_lock("mug"), timeout_s=1):
        note(workspace, "train")
        trainer = threading.Thread(target=answer)
        trainer.start()
        assert saving.save_now(workspace, "mug") == 57
        trainer.join()
