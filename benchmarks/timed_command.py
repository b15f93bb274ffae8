"""Run a command and record the wall time and CPU time of each output line."""

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
    """An output line, with the wall and CPU seconds since the start of the command."""

    wall_s: float
    cpu_s: float
    text: str


@dataclass(frozen=True)
class Run:
    """A finished command: its output lines, wall seconds and CPU seconds."""

    lines: tuple[Line, ...]
    wall_s: float
    cpu_s: float

    def steps(self) -> list[tuple[int, Line]]:
        """The first line that reports each completed step, in order."""
        found: dict[int, Line] = {}
        for line in self.lines:
            if match := _STEP.search(line.text):
                found.setdefault(int(match[1]), line)
        return sorted((step, line) for step, line in found.items() if step > 0)

    def first_step(self) -> Line:
        """The line that reports the first completed step. Raises ValueError if there is none."""
        steps = self.steps()
        if not steps:
            raise ValueError("the command reported no step")
        return steps[0][1]

    def seconds_per_step(self, *, after: int) -> tuple[float, float]:
        """Mean wall and CPU seconds per step after step `after`."""
        steps = [entry for entry in self.steps() if entry[0] >= after]
        (first, begin), (last, end) = steps[0], steps[-1]
        count = last - first
        return (end.wall_s - begin.wall_s) / count, (end.cpu_s - begin.cpu_s) / count

    def cpu_s_at(self, wall_s: float) -> float:
        """CPU seconds at the first line at or after `wall_s`."""
        return next((line.cpu_s for line in self.lines if line.wall_s >= wall_s), self.cpu_s)


def run_timed(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Run:
    """Run the command to completion. Raises RuntimeError with its last lines if it fails."""
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
        raise RuntimeError(f"{command[0]} ... exited with {code}:\n{tail}")
    return Run(tuple(lines), time.monotonic() - began, meter.read())


class _CpuMeter:
    """CPU seconds of a process and all its descendants, including those that have exited."""

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


def rounded_median(values: Sequence[float]) -> float:
    """The median, rounded to four places."""
    return round(float(median(values)), 4)
