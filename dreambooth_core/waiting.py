"""Polling with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, timeout_s: float, every_s: float) -> T:
    """Poll `condition` until its result is true or `timeout_s` seconds have passed.

    Returns the last result, which is false after a timeout. `condition` runs at least once.
    """
    deadline = time.monotonic() + timeout_s
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(every_s)
    return result
