"""A user's request to save a training at its present step: a file in the store."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from dreambooth_core import files
from dreambooth_core.training.progress import log_line


class SaveRequest:
    """Looks for the file `path`, and answers with one next to it that names the saved step."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def is_made(self) -> bool:
        """Whether there is a request. Every process of the run calls it, and gets one answer."""
        state = PartialState()
        found = [state.is_main_process and self._path.exists()]
        if state.num_processes > 1:
            broadcast_object_list(found)
        return found[0]

    def answer(self, step: int) -> None:
        """Say that the state of `step` is on disk."""
        if PartialState().is_main_process:
            files.write_json(self._path.with_suffix(".json"), {"step": step})
            self._path.unlink(missing_ok=True)
            log_line(f"saved at step {step}, as asked")
