"""Running a command and noting when it says what: wall time and CPU time of every line."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

_STEP = re.compile(r"(?:Steps:.*?\|\s*|\bstep )(\d+)/(\d+)")
_LINE_END = re.compile(rb"[\r\n]+")


@dataclass(frozen=True)
class Line:
    """A line with the seconds since the command began, and the CPU seconds used until then."""

    wall_s: float
    cpu_s: float
    text: str


@dataclass(frozen=True)
class Run:
    """A finished command: all its lines, and what it took."""

    lines: tuple[Line, ...]
    wall_s: float
    cpu_s: float

    def steps(self) -> list[tuple[int, Line]]:
        """The first line that tells of each completed step, in order."""
        found: dict[int, Line] = {}
        for line in self.lines:
            if match := _STEP.search(line.text):
                found.setdefault(int(match[1]), line)
        return sorted((step, line) for step, line in found.items() if step > 0)

    def first_step(self) -> Line:
        """When the first completed step was told. Raises ValueError when none was."""
        steps = self.steps()
        if not steps:
            raise ValueError("the command told of no step")
        return steps[0][1]

    def seconds_per_step(self, *, after: int) -> tuple[float, float]:
        """Wall and CPU seconds of a step, over all steps after the `after`-th."""
        steps = [entry for entry in self.steps() if entry[0] >= after]
        (first, begin), (last, end) = steps[0], steps[-1]
        count = last - first
        return (end.wall_s - begin.wall_s) / count, (end.cpu_s - begin.cpu_s) / count

    def cpu_s_at(self, wall_s: float) -> float:
        """CPU seconds used when the first line at or after `wall_s` was told."""
        return next((line.cpu_s for line in self.lines if line.wall_s >= wall_s), self.cpu_s)

    def line_with(self, text: str) -> Line:
        """The first line that holds `text`. Raises ValueError."""
        for line in self.lines:
            if text in line.text:
                return line
        raise ValueError(f"no line holds {text!r}")


def watch(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Run:
    """Run the command to its end. Raises RuntimeError with its last lines when it fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        list(command), cwd=cwd, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    meter = _CpuMeter(process.pid)
    lines: list[Line] = []
    assert process.stdout is not None
    rest = b""
    while chunk := os.read(process.stdout.fileno(), 1 << 16):
        now, cpu = time.monotonic() - began, meter.read()
        *whole, rest = _LINE_END.split(rest + chunk)
        lines += [Line(now, cpu, raw.decode(errors="replace")) for raw in whole if raw.strip()]
    code = process.wait()
    if code != 0:
        tail = "\n".join(line.text for line in lines[-15:])
        raise RuntimeError(f"{command[0]} ... ended with {code}:\n{tail}")
    return Run(tuple(lines), time.monotonic() - began, meter.read())


class _CpuMeter:
    """CPU seconds of a process and all that it starts, those that have ended included."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: dict[int, float] = {}

    def read(self) -> float:
        with contextlib.suppress(psutil.Error):
            top = psutil.Process(self._pid)
            for process in (top, *top.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self._seen[process.pid] = times.user + times.system
        return sum(self._seen.values())


def middle(values: Sequence[float]) -> float:
    """The median, rounded for a table."""
    return round(float(median(values)), 4)
