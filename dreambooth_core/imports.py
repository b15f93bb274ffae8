"""Importing the large libraries in less time."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
from collections.abc import Iterator


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Import with the collector of reference cycles at rest, which passes over it all afterwards.

    Thousands of modules allocate millions of objects that stay; it would walk through them again
    and again, for a third of the CPU time from a command to its first update. Only a process's
    first imports are passed over: what is there by the time of later ones may have an end.
    """
    is_first = gc.get_freeze_count() == 0
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()
        if was_on:
            gc.enable()


def is_installed(package: str) -> bool:
    """Whether the package can be imported; it is not."""
    return importlib.util.find_spec(package) is not None
