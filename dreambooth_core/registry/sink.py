"""The MetricSink that writes to MLflow: from a thread of its own, so that training never waits."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from dreambooth_core.errors import DreamBoothError
from dreambooth_core.registry import runs
from dreambooth_core.registry.tracking import Tracking, connect

FLUSH_EVERY_S = 2.0
CLOSE_TIMEOUT_S = 15.0

_MAX_BATCH = 500
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSpec:
    """Which run a sink writes to, and what it says about it once."""

    experiment: str
    fingerprint: str
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    system_metrics_every_s: int | None = None


@dataclass(frozen=True)
class _Picture:
    png: bytes
    name: str
    step: int


class MlflowSink:
    """Batches numbers and pictures into the run of `spec`; losing them never fails the work.

    Nothing is asked of MLflow before the first item, and all of it happens in a daemon thread. The
    first failure is a warning in the log; the rest of the run then goes unrecorded, as the files of
    the stages hold all of it anyway. A number that the run already has at a step (an exact resume
    computes some steps twice) is left out.
    """

    def __init__(self, tracking: Tracking, spec: RunSpec) -> None:
        self._tracking, self._spec = tracking, spec
        self._items: queue.SimpleQueue[Metric | _Picture | None] = queue.SimpleQueue()
        self._known: dict[str, set[tuple[int, float]]] = {}
        self._status = "FINISHED"
        self._thread: threading.Thread | None = None

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record numbers at a step."""
        now = int(time.time() * 1000)
        for key, value in values.items():
            self._put(Metric(key, float(value), now, step))

    def image(self, path: Path, *, name: str, step: int) -> None:
        """Record a picture; its file is read now and may be gone later."""
        try:
            self._put(_Picture(path.read_bytes(), name, step))
        except OSError as error:
            _LOG.warning("picture %s is not recorded: %s", name, error)

    def close(self, *, status: str) -> None:
        """Write what is left, for at most CLOSE_TIMEOUT_S, and end the run with `status`."""
        if self._thread is None:
            return
        self._status = status
        self._items.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            _LOG.warning("MLflow is slow: the last metrics may be missing there")
        self._thread = None

    def _put(self, item: Metric | _Picture) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mlflow-sink", daemon=True)
            self._thread.start()
        self._items.put(item)

    # ---- below: the thread ----------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._record()
        except DreamBoothError as error:
            _LOG.warning("this run is not recorded from here on: %s", error)
        except Exception:
            # Whatever MLflow does, the training goes on: its own files are the truth.
            _LOG.warning("this run is not recorded from here on", exc_info=True)

    def _record(self) -> None:
        run = self._open()
        with self._watching_the_machine(run):
            open_ = True
            while open_:
                batch, open_ = self._next_batch()
                self._write(run, batch)
        runs.set_status(self._tracking, run, self._status)

    def _open(self) -> runs.RunRef:
        spec = self._spec
        run = runs.find_or_create_run(
            self._tracking,
            experiment=spec.experiment,
            fingerprint=spec.fingerprint,
            name=spec.name,
            tags=spec.tags,
        )
        if not run.created:
            runs.set_status(self._tracking, run, "RUNNING")
        runs.log_params(self._tracking, run, spec.params)
        return run

    @contextlib.contextmanager
    def _watching_the_machine(self, run: runs.RunRef) -> Iterator[None]:
        """Record processor, memory, disk, network and GPU while the block runs."""
        every = self._spec.system_metrics_every_s
        if every is None:
            yield
            return
        monitor = SystemMetricsMonitor(
            run.run_id,
            sampling_interval=every,
            resume_logging=not run.created,
            tracking_uri=self._tracking.uri,
        )
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def _next_batch(self) -> tuple[list[Metric | _Picture], bool]:
        """Wait for the first item, then gather more for a while; False when the sink is closed."""
        batch: list[Metric | _Picture] = []
        deadline: float | None = None
        while len(batch) < _MAX_BATCH:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                item = self._items.get(timeout=left)
            except queue.Empty:
                break
            if item is None:
                return batch, False
            batch.append(item)
            deadline = deadline or time.monotonic() + FLUSH_EVERY_S
        return batch, True

    def _write(self, run: runs.RunRef, batch: list[Metric | _Picture]) -> None:
        metrics = [item for item in batch if isinstance(item, Metric)]
        new = [metric for metric in metrics if self._is_new(run, metric)]
        if new:
            connect(self._tracking).log_batch(run.run_id, metrics=new)
        for item in batch:
            if isinstance(item, _Picture):
                runs.log_image(self._tracking, run, item.png, name=item.name, step=item.step)

    def _is_new(self, run: runs.RunRef, metric: Metric) -> bool:
        """Whether the run lacks this number; remembers it."""
        if metric.key not in self._known:
            client = connect(self._tracking)
            history = set() if run.created else runs.recorded(client, run.run_id, metric.key)
            self._known[metric.key] = history
        entry = (metric.step, metric.value)
        if entry in self._known[metric.key]:
            return False
        self._known[metric.key].add(entry)
        return True
