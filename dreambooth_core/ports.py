"""What the core asks of the world above it: where metrics go, how progress shows, when to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

StopSignal = Callable[[], bool]
"""Says whether a stop was asked for; asked between steps and between sampling batches."""


def never_stop() -> bool:
    """The StopSignal of work that nobody stops."""
    return False


class MetricSink(Protocol):
    """Receives numbers, pictures and files while a stage runs. Losing them never fails a stage."""

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record numbers at a step (a completed optimizer update)."""
        ...

    def close(self, *, status: str) -> None:
        """End the record with `FINISHED`, `FAILED` or `KILLED`."""
        ...


class NullSink:
    """A MetricSink that keeps nothing."""

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Keep nothing."""

    def close(self, *, status: str) -> None:
        """Keep nothing."""


class Progress(Protocol):
    """Shows how far a piece of work is."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """`done` of `total` units are complete; `text` says what is worth saying (rate, ETA)."""
        ...


def no_progress(done: int, total: int, text: str = "") -> None:
    """The Progress of work that nobody watches."""
