"""The measured tables that lie beside this module, and lines through their points."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any


@functools.cache
def read_table(name: str) -> dict[str, Any]:
    """A table by its file's name. It is shared: not to be changed."""
    return json.loads(resources.files("dreambooth_core.planning").joinpath(name).read_bytes())


def line_through(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at `x` on the line through the first and the last point."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    return y0 + (y1 - y0) / (x1 - x0) * (x - x0)
