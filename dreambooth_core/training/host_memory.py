"""How much of the host's memory a process may still take."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Limit, use and details as a container sees its own, by version 2 and 1 of Linux' cgroups."""


def available_bytes(cgroup: Path = _CGROUP) -> int:
    """What the machine has free, or less where the container that this runs in has a limit.

    Cached files count as free, as they give way.
    """
    free = psutil.virtual_memory().available
    return min([free, *_left_in_container(cgroup)])


def _left_in_container(cgroup: Path) -> list[int]:
    left: list[int] = []
    for limit_name, used_name, stat_name, cached_key in _LIMITS:
        limit = _read(cgroup / limit_name)
        if not limit.isdecimal():  # no such file, or "max"
            continue
        stat = dict(line.split() for line in _read(cgroup / stat_name).splitlines())
        used = int(_read(cgroup / used_name)) - int(stat.get(cached_key, 0))
        left.append(max(0, int(limit) - used))
    return left


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
