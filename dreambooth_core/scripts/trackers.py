"""Curves and images for the trackers of the guide's scripts, through accelerate."""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreambooth_core.logs import logger
from dreambooth_core.scripts.flags import TRACKER_PACKAGES

PROJECT = "dreambooth"
"""The project name of the guide's scripts: TensorBoard writes to `logs/dreambooth`."""

_CLOSE_TIMEOUT_S = 30.0
_RENAMED = {"learning_rate": "lr"}


class TrackerSink:
    """A MetricSink over accelerate's trackers, which import and write in a separate thread.

    The first step does not wait for them. The first failure is a warning, not an error.
    """

    def __init__(self, report_to: str, *, logging_dir: Path, config: Mapping[str, Any]) -> None:
        self._names = _available(report_to)
        self._logging_dir, self._config = logging_dir, dict(config)
        self._jobs: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        if self._names:
            self._thread.start()

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Log numbers at a step; the learning rate is `lr`, as in the guide's scripts."""
        renamed = {_RENAMED.get(name, name): value for name, value in values.items()}
        self._ask(lambda tracker: tracker.log(renamed, step=step))

    def images(self, images: Sequence[Image.Image], *, name: str, step: int) -> None:
        """Log images of one size under one name."""
        stack_NHWC = np.stack([np.asarray(image) for image in images])
        self._ask(lambda tracker: _log_images(tracker, {name: stack_NHWC}, step))

    def close(self, *, status: str) -> None:
        """Flush for a limited time; these trackers have no field for `status`."""
        if not self._names:
            return
        self._jobs.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            logger.warning("a tracker is slow: its last numbers may be missing (%s)", status)

    def _ask(self, job: Callable[[Any], None]) -> None:
        """Queue a job for the thread if there is a tracker."""
        if self._names:
            self._jobs.put(job)

    def _work(self) -> None:
        try:
            trackers = [self._start(name) for name in self._names]
            while job := self._jobs.get():
                for tracker in trackers:
                    job(tracker)
            for tracker in trackers:
                tracker.finish()
        except Exception as error:
            # A broken tracker must not end the training.
            logger.warning("nothing is tracked from here on: %s: %s", type(error).__name__, error)

    def _start(self, name: str) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        needs_folder = kind.requires_logging_directory
        tracker = kind(PROJECT, self._logging_dir) if needs_folder else kind(PROJECT)
        tracker.start()
        tracker.store_init_configuration(self._config)
        return tracker


def _available(report_to: str) -> list[str]:
    wanted = (
        TRACKER_PACKAGES if report_to == "all" else {report_to: TRACKER_PACKAGES.get(report_to)}
    )
    return [n for n, package in wanted.items() if package and importlib.util.find_spec(package)]


def _log_images(tracker: Any, values: dict[str, Any], step: int) -> None:
    """Log images to TensorBoard and W&B; accelerate's Comet tracker does not support them."""
    if tracker.name == "tensorboard":
        tracker.log_images(values, step=step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        tracker.log_images(values, step=step)
