"""The MetricSink that writes to MLflow in a thread, so that training never waits for a server.

MLflow's own asynchronous logging cannot keep that promise: it needs a run that exists already, it
retries every batch for minutes, and the process cannot exit before its queue is empty.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
    """The run that a sink finds or creates."""

    experiment: str
    fingerprint: str
    name: str
    system_metrics_every_s: int | None = None


class MlflowSink:
    """Writes numbers into the run of `spec` in batches; a failure never stops the training.

    The first number starts a daemon thread, which makes every call to MLflow. On the first failure
    the thread logs one warning and ends: the stage's own files hold all numbers. It skips a number
    that the run already has at that step, because an exact resume repeats some steps.
    """

    def __init__(self, tracking: Tracking, spec: RunSpec) -> None:
        self._tracking, self._spec = tracking, spec
        self._queue: queue.SimpleQueue[Metric | None] = queue.SimpleQueue()
        self._known: dict[str, set[tuple[int, float]]] = {}
        self._status = "FINISHED"
        self._thread: threading.Thread | None = None

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record numbers at a step."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="mlflow-sink", daemon=True)
            self._thread.start()
        now = int(time.time() * 1000)
        for key, value in values.items():
            self._queue.put(Metric(key, float(value), now, step))

    def close(self, *, status: str) -> None:
        """Write the rest, for at most CLOSE_TIMEOUT_S, and end the run with `status`."""
        if self._thread is None:
            return
        self._status = status
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            _LOG.warning("MLflow is slow: the last metrics may be missing there")
        self._thread = None

    # ---- in the thread --------------------------------------------------------------------------

    def _write_all(self) -> None:
        try:
            run = self._open_run()
            with self._system_metrics(run):
                is_open = True
                while is_open:
                    batch, is_open = self._next_batch()
                    new = [metric for metric in batch if self._is_new(run, metric)]
                    if new:
                        connect(self._tracking).log_batch(run.run_id, metrics=new)
            runs.set_status(self._tracking, run, self._status)
        except DreamBoothError as error:
            _LOG.warning("MLflow records nothing more of this run: %s", error)
        except Exception:
            # MLflow raises many types, and none of them may stop the training.
            _LOG.warning("MLflow records nothing more of this run", exc_info=True)

    def _open_run(self) -> runs.RunRef:
        spec = self._spec
        run = runs.find_or_create_run(
            self._tracking, experiment=spec.experiment, fingerprint=spec.fingerprint, name=spec.name
        )
        if not run.created:
            runs.set_status(self._tracking, run, "RUNNING")
        return run

    @contextlib.contextmanager
    def _system_metrics(self, run: runs.RunRef) -> Iterator[None]:
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

    def _next_batch(self) -> tuple[list[Metric], bool]:
        """Wait for a number and collect more for FLUSH_EVERY_S; False after `close`."""
        batch: list[Metric] = []
        deadline: float | None = None
        while len(batch) < _MAX_BATCH:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                metric = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if metric is None:
                return batch, False
            batch.append(metric)
            deadline = deadline or time.monotonic() + FLUSH_EVERY_S
        return batch, True

    def _is_new(self, run: runs.RunRef, metric: Metric) -> bool:
        """Whether the run lacks this number; from now on it has it."""
        if metric.key not in self._known:
            client = connect(self._tracking)
            history = set() if run.created else runs.recorded(client, run.run_id, metric.key)
            self._known[metric.key] = history
        entry = (metric.step, metric.value)
        is_new = entry not in self._known[metric.key]
        self._known[metric.key].add(entry)
        return is_new
