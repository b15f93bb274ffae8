"""The metrics of `dreambooth metrics`, read from the workspace and Prefect at every request.

A training opens no port, and loses no number when it is killed: it notes in the store how far it
is, and this module reads the note.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping

import psutil
from prometheus_client import CollectorRegistry, Metric, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cli import disk_usage, services, status
from cli.run_counts import RunCounts
from dreambooth_core import config, locks
from dreambooth_core.errors import SettingsError
from dreambooth_core.records import Scores, Selection
from dreambooth_core.training.progress import numbers_in
from dreambooth_core.workspace import STAGES, Workspace
from tasks import run_progress

_DISK_EVERY_S = 300.0


@contextlib.contextmanager
def served(
    workspace: Workspace, env: Mapping[str, str], *, port: int, host: str = "127.0.0.1"
) -> Iterator[str]:
    """Serve the metrics in a thread; yield their URL. Raises SettingsError for a taken port."""
    try:
        server, thread = start_http_server(port, host, _registry(workspace, env))
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}",
            got=str(error),
            hint="choose another one with --port, or an address of this machine with --host",
        ) from None
    try:
        yield f"http://{host}:{port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def text_of(workspace: Workspace, env: Mapping[str, str]) -> str:
    """The metrics in Prometheus' text format."""
    return generate_latest(_registry(workspace, env)).decode()


def _registry(workspace: Workspace, env: Mapping[str, str]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(WorkspaceCollector(workspace, env))
    return registry


class WorkspaceCollector(Collector):
    """Reads the metrics of a workspace; leaves out what cannot be read."""

    def __init__(self, workspace: Workspace, env: Mapping[str, str]) -> None:
        self._workspace, self._env = workspace, env
        self._disk_read = float("-inf")
        self._disk: list[disk_usage.Usage] = []
        self._counts = RunCounts()

    def describe(self) -> Iterable[Metric]:
        """Nothing: without this, a registry would read everything once just for the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read every metric now."""
        subjects = list(config.load_settings(self._workspace.params).subjects)
        yield from self._runs(subjects)
        yield from self._results(subjects)
        yield from self._machine()
        api = services.api_in_use(self._workspace, self._env)
        if api:
            yield from self._counts.collect(api)

    def _runs(self, subjects: list[str]) -> Iterator[Metric]:
        """What runs now, how far it is, and what it needs."""
        active = _gauge("run_active", "1 while a run of the subject is in progress", "subject")
        done = _gauge("stage_done", "Finished units of the present stage", "subject", "stage")
        total = _gauge("stage_total", "Units of the present stage", "subject", "stage")
        age = _gauge("progress_age_seconds", "Seconds since the run last advanced", "subject")
        memory = _gauge("run_memory_bytes", "Memory of the run's processes", "subject")
        numbers = {
            "loss": _gauge("training_loss", "Loss of the last optimizer update", "subject"),
            "learning_rate": _gauge("training_learning_rate", "Learning rate", "subject"),
            "steps_per_second": _gauge(
                "training_steps_per_second", "Optimizer updates per second", "subject"
            ),
            "seconds_left": _gauge(
                "training_left_seconds", "Estimated time to the last step", "subject"
            ),
        }
        for subject in subjects:
            holder = locks.holder_of(self._workspace.subject_lock(subject))
            active.add_metric([subject], 0 if holder is None else 1)
            progress = run_progress.read(self._workspace, subject)
            if progress is None:
                continue
            done.add_metric([subject, progress.stage], progress.done)
            total.add_metric([subject, progress.stage], progress.total)
            age.add_metric([subject], time.time() - progress.updated)
            memory.add_metric([subject], run_progress.memory_of(progress.process))
            for name, value in numbers_in(progress.text).items():
                numbers[name].add_metric([subject], value)
        yield from (active, done, total, age, memory, *numbers.values())

    def _results(self, subjects: list[str]) -> Iterator[Metric]:
        """When each stage last finished, and the scores of the selected checkpoint."""
        finished = _gauge(
            "stage_finished_timestamp_seconds", "When the stage last finished", "subject", "stage"
        )
        score = _gauge("selected_score", "Scores of the selected checkpoint", "subject", "score")
        for subject in subjects:
            for stage in STAGES:
                at = status.finished_at(self._workspace, subject, stage)
                if at is not None:
                    finished.add_metric([subject, stage], at)
            for name, value in _selected_scores(self._workspace, subject).items():
                score.add_metric([subject, name], value)
        yield from (finished, score)

    def _machine(self) -> Iterator[Metric]:
        """Disk and memory of this machine; what fills the disk is read every few minutes."""
        disk = shutil.disk_usage(self._workspace.root)
        yield _single("disk_free_bytes", "Free space of the project's disk", disk.free)
        yield _single("disk_size_bytes", "Size of the project's disk", disk.total)
        memory = psutil.virtual_memory()
        yield _single("memory_available_bytes", "Memory left on the machine", memory.available)
        if time.monotonic() - self._disk_read > _DISK_EVERY_S:
            self._disk, self._disk_read = disk_usage.usage_of(self._workspace), time.monotonic()
        used = _gauge("disk_used_bytes", "Space that the project fills", "what")
        for line in self._disk:
            used.add_metric([line.what], line.num_bytes)
        yield used


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dreambooth_{name}", text, labels=labels)


def _single(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dreambooth_{name}", text, value=value)


def _selected_scores(workspace: Workspace, subject: str) -> dict[str, float]:
    selection = Selection.read_if_there(workspace.stage_dir(subject, "select"))
    # Not the record, which has every image and is megabytes long.
    table = Scores.read_if_there(workspace.stage_dir(subject, "evaluate"), "scores.json")
    if selection is None or table is None:
        return {}
    return next((row.means() for row in table.rows if row.name == selection.best), {})
