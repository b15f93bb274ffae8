"""Interfaces that callers of the core implement: metrics, progress, stop signal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

StopSignal = Callable[[], bool]
"""Returns whether to stop; called between training steps and between sampling steps."""


def never_stop() -> bool:
    """The StopSignal that never stops."""
    return False


class MetricSink(Protocol):
    """Receives metrics while a stage runs. A failing sink never fails the stage."""

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record numbers at a step (a completed optimizer update)."""
        ...

    def close(self, *, status: str) -> None:
        """End the record with `FINISHED`, `FAILED` or `KILLED`."""
        ...


class NullSink:
    """A MetricSink that drops everything."""

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Drop everything."""

    def close(self, *, status: str) -> None:
        """Drop everything."""


class SeveralSinks:
    """A MetricSink that passes everything on to each of its sinks."""

    def __init__(self, *sinks: MetricSink) -> None:
        self._sinks = sinks

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Record numbers at a step in each."""
        for sink in self._sinks:
            sink.metrics(values, step=step)

    def close(self, *, status: str) -> None:
        """End each record."""
        for sink in self._sinks:
            sink.close(status=status)


class Progress(Protocol):
    """Reports progress."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Report `done` of `total` units; `text` adds a rate or an estimate."""
        ...


def no_progress(done: int, total: int, text: str = "") -> None:
    """The Progress that reports nothing."""


class Throttle:
    """Allows one line of a log every few seconds, whichever stage it comes from."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._last = every_s, float("-inf")

    def is_due(self) -> bool:
        """Whether enough time has passed since the last line; if so, the next one must wait."""
        now = time.monotonic()
        if now - self._last < self._every_s:
            return False
        self._last = now
        return True
