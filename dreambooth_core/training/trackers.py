"""TensorBoard, W&B and Comet, through accelerate. Torch-free until the first number."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreambooth_core.environment import is_installed
from dreambooth_core.errors import SettingsError
from dreambooth_core.logs import logger

_CLOSE_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_KILLED_S = 5.0
"""After a stop, the trainer must end within runtime.stop_grace_s."""


class TrackerSink:
    """A MetricSink over one of accelerate's trackers, which a separate thread imports and feeds.

    The first step does not wait for it. `options` are further arguments of accelerate's class. The
    first failure is a warning, not an error. A run that resumes with the same `logging_dir` and
    `project` continues TensorBoard's curves: what a killed process logged from the first number's
    step on is hidden.
    """

    def __init__(
        self,
        name: str,
        *,
        project: str,
        logging_dir: Path,
        config: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._name, self._project, self._logging_dir = name, project, logging_dir
        self._config, self._options = dict(config or {}), dict(options or {})
        self._jobs: queue.SimpleQueue[tuple[int, Callable[[Any], None]] | None]
        self._jobs = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Log numbers at a step."""
        numbers = dict(values)
        self._jobs.put((step, lambda tracker: tracker.log(numbers, step=step)))

    def images(self, images: Sequence[Image.Image], *, name: str, step: int) -> None:
        """Log images of one size under one name."""
        stack_NHWC = np.stack([np.asarray(image) for image in images])
        self._jobs.put((step, lambda tracker: _log_images(tracker, {name: stack_NHWC}, step)))

    def close(self, *, status: str) -> None:
        """Flush for a limited time; these trackers have no field for `status`."""
        self._jobs.put(None)
        self._thread.join(_CLOSE_TIMEOUT_KILLED_S if status == "KILLED" else _CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            logger.warning("%s is slow: its last numbers may be missing", self._name)

    # ---- in the thread --------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            tracker: Any = None
            while (asked := self._jobs.get()) is not None:
                step, job = asked
                tracker = tracker or self._start(step)
                job(tracker)
            if tracker is not None:
                tracker.finish()
        except Exception as error:
            # A broken tracker must not end the training.
            name = type(error).__name__
            logger.warning("%s gets nothing from here on: %s: %s", self._name, name, error)

    def _start(self, step: int) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind: Any = LOGGER_TYPE_TO_CLASS[self._name]
        if self._name == "tensorboard":
            self._options["purge_step"] = step
        folder = (self._logging_dir,) if kind.requires_logging_directory else ()
        tracker = kind(self._project, *folder, **self._options)
        tracker.start()
        if self._config:
            tracker.store_init_configuration(self._config)
        return tracker


def check_trackers(names: Sequence[str]) -> None:
    """Raise SettingsError for trackers whose package, of the same name, is not installed."""
    missing = [name for name in names if not is_installed(name)]
    if missing:
        raise SettingsError(
            f"{missing[0]} is not installed",
            key="runtime.report_to",
            hint=f"pip install {' '.join(missing)}, or take it out of the list",
        )


def _log_images(tracker: Any, values: dict[str, Any], step: int) -> None:
    """Log images to TensorBoard and W&B; accelerate's Comet tracker does not support them."""
    if tracker.name == "tensorboard":
        tracker.log_images(values, step=step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        tracker.log_images(values, step=step)
