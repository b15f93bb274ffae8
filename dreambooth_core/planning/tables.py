"""The measured tables of this package, and interpolation between their rows."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any


@functools.cache
def read_table(name: str) -> dict[str, Any]:
    """Read a table by its file name. Callers share it and must not change it."""
    return json.loads(resources.files("dreambooth_core.planning").joinpath(name).read_bytes())


def line_through(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at `x` on the line through the first and last points."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    return y0 + (y1 - y0) / (x1 - x0) * (x - x0)
