"""Sends the metrics of a training to its MLflow run while it works."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities import Metric
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.time import get_current_time_millis

from dreambooth_core.errors import DreamBoothError
from dreambooth_core.logs import logger
from dreambooth_core.masking import scrubbed
from dreambooth_core.registry import runs, store_opening
from dreambooth_core.registry.runs import RunRef
from dreambooth_core.registry.tracking import Tracking, connect

FLUSH_EVERY_S = 2.0
RETRY_EVERY_S = 10.0
CLOSE_TIMEOUT_S = 15.0

_MAX_BATCH = 500


@dataclass(frozen=True)
class RunSpec:
    """The run that a sink finds or creates."""

    experiment: str
    fingerprint: str
    name: str
    system_metrics_every_s: int | None = None
    device: str | None = None


class MlflowSink:
    """Writes numbers into the run of `spec` in batches; a failure never stops the training.

    The first number starts a daemon thread, which makes every call to MLflow. While MLflow fails,
    the thread keeps the numbers and tries again every RETRY_EVERY_S; what it cannot send before the
    training ends, the register stage sends from the training's own table. It skips a number that
    the run already has at that step, because an exact resume repeats some steps.
    """

    def __init__(self, tracking: Tracking, spec: RunSpec) -> None:
        self._tracking, self._spec = tracking, spec
        self._queue: queue.SimpleQueue[Metric | None] = queue.SimpleQueue()
        self._waiting: list[Metric] = []
        self._known: dict[str, set[tuple[int, float]]] = {}
        self._run: RunRef | None = None
        self._system_metrics = contextlib.ExitStack()
        self._failed_at: float | None = None
        self._status = "FINISHED"
        self._thread: threading.Thread | None = None

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record numbers at a step."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="mlflow-sink", daemon=True)
            self._thread.start()
        now = get_current_time_millis()
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
            logger.warning("MLflow is slow: the last metrics follow with the registration")
        self._thread = None

    # ---- in the thread --------------------------------------------------------------------------

    def _write_all(self) -> None:
        self._try_to_send(is_last=False)  # opens the run
        is_open = True
        while is_open:
            batch, is_open = self._next_batch()
            self._waiting += batch
            if not is_open or self._is_due():
                self._try_to_send(is_last=not is_open)
        self._system_metrics.close()

    def _is_due(self) -> bool:
        return self._failed_at is None or time.monotonic() - self._failed_at >= RETRY_EVERY_S

    def _try_to_send(self, *, is_last: bool) -> None:
        """Send what waits; after the first failure in a row, say so."""
        try:
            store_opening.reach(self._tracking.uri)  # MLflow's own calls retry for minutes
            self._send()
            if is_last and self._run is not None:
                runs.set_status(self._tracking, self._run, self._status)
            if self._failed_at is not None:
                logger.warning("MLflow answers again and has all metrics")
            self._failed_at = None
        except Exception as error:  # MLflow raises many types, and none may stop the training
            if self._failed_at is None:
                text = str(error)
                if not isinstance(error, DreamBoothError):
                    text = scrubbed(f"{type(error).__name__}: {error}", self._tracking.uri)
                logger.warning("the metrics wait until MLflow answers again: %s", text)
            self._failed_at = time.monotonic()
            self._known.clear()  # a failed call may have arrived

    def _send(self) -> None:
        run = self._run or self._open_run()
        for batch in runs.batches(self._waiting, _MAX_BATCH):
            new = [m for m in batch if (m.step, m.value) not in self._history(run, m.key)]
            if new:
                connect(self._tracking).log_batch(run.run_id, metrics=new)
            for metric in new:
                self._known[metric.key].add((metric.step, metric.value))
        self._waiting.clear()

    def _open_run(self) -> RunRef:
        spec = self._spec
        run = runs.find_or_create_run(
            self._tracking, experiment=spec.experiment, fingerprint=spec.fingerprint, name=spec.name
        )
        if not run.created:
            runs.resume(self._tracking, run)
        if spec.device is not None:
            runs.log_tags(self._tracking, run, {runs.DEVICE: spec.device})
        if spec.system_metrics_every_s is not None:
            self._monitor(run, spec.system_metrics_every_s)
        self._run = run
        return run

    def _monitor(self, run: RunRef, every_s: int) -> None:
        """Record processor, memory, disk, network and GPU until the sink closes."""
        monitor = SystemMetricsMonitor(
            run.run_id,
            sampling_interval=every_s,
            resume_logging=not run.created,
            tracking_uri=self._tracking.uri,
        )
        monitor.start()
        self._system_metrics.callback(monitor.finish)

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

    def _history(self, run: RunRef, key: str) -> set[tuple[int, float]]:
        """The steps and values of a key that the run has."""
        if key not in self._known:
            self._known[key] = runs.recorded(connect(self._tracking), run.run_id, key)
        return self._known[key]
