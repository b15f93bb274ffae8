"""The plot area of the page's charts: coordinates, round ticks and horizontal rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Margins:
    """The room around a plot area, in px."""

    left: int
    right: int
    top: int
    bottom: int


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Maps values to coordinates of a chart of `size` (width, height) px.

    `across` and `up` are the values at the edges of the plot area.
    """

    size: tuple[int, int]
    margins: Margins
    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        """Horizontal position; larger values are further right."""
        low, high = self.across
        width = self.size[0] - self.margins.left - self.margins.right
        return self.margins.left + (value - low) / ((high - low) or 1.0) * width

    def y(self, value: float) -> float:
        """Vertical position; larger values are higher up."""
        low, high = self.up
        height = self.size[1] - self.margins.top - self.margins.bottom
        bottom = self.size[1] - self.margins.bottom
        return bottom - (value - low) / ((high - low) or 1.0) * height

    def rules(self, ticks: Sequence[float]) -> list[str]:
        """A thin line across the plot area at each tick, with its number."""
        digits, right = digits_of(ticks), self.size[0] - self.margins.right
        left = self.margins.left
        return [
            f'<line class="rule" x1="{left}" x2="{right}" y1="{self.y(t):.1f}" '
            f'y2="{self.y(t):.1f}"/><text class="tick" x="{left - 8}" y="{self.y(t) + 4:.1f}" '
            f'text-anchor="end">{t:.{digits}f}</text>'
            for t in ticks
        ]


def digits_of(ticks: Sequence[float]) -> int:
    """The decimals that all ticks need."""
    return max(len(f"{tick:g}".partition(".")[2]) for tick in ticks)


def nice_ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Round numbers that enclose [low, high], at most about `most` of them."""
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
