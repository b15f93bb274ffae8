"""Line charts as inline SVG without scripts or fonts; the colours are those of the page's CSS.

Written by hand rather than by a plotting library, whose SVG carries fixed colours (unreadable on a
dark page) and ids that clash when several stand on one page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from dreambooth_core.report.plane import Margins, Plane, nice_ticks

_MARGINS = Margins(left=46, right=14, top=12, bottom=30)
_W, _H = 340, 220
_LEFT, _RIGHT, _TOP = _MARGINS.left, _MARGINS.right, _MARGINS.top
_MOST_STEPS = 8  # more numbers than this do not fit below the chart


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value at a step, optionally with an interval."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line with its name: the real photos' score, or a limit of the selection."""

    value: float
    label: str
    kind: str  # "real" or "limit": the CSS class


def line_chart(
    points: Sequence[Point],
    *,
    label: str,
    levels: Sequence[Level] = (),
    marked: int | None = None,
) -> Markup:
    """An SVG of one series over steps, with its band of intervals, and a ring at step `marked`.

    `label` is what a screen reader says. Raises ValueError when there are no points.
    """
    if not points:
        raise ValueError("a chart needs at least one point")
    ticks = nice_ticks(*_value_range(points, levels))
    scale = Plane(
        size=(_W, _H),
        margins=_MARGINS,
        across=(points[0].step, points[-1].step),
        up=(min(ticks), max(ticks)),
    )
    # The parts contain numbers and escaped texts only.
    parts = [
        f'<svg class="chart" viewBox="0 0 {_W} {_H}" role="img" aria-label="{escape(label)}">',
        *_axes(scale, ticks, points),
        _band(scale, points),
        _line(scale, points),
        *(_level(scale, level, points=points) for level in levels),
        *_dots(scale, points, marked=marked),
        "</svg>",
    ]
    return Markup("\n".join(part for part in parts if part))


def _value_range(points: Sequence[Point], levels: Sequence[Level]) -> tuple[float, float]:
    values = [p.value for p in points] + [level.value for level in levels]
    values += [v for p in points for v in (p.low, p.high) if v is not None]
    return min(values), max(values)


def _axes(scale: Plane, ticks: Sequence[float], points: Sequence[Point]) -> list[str]:
    return [
        *scale.rules(ticks),
        *(
            f'<text class="tick" x="{scale.x(step):.1f}" y="{_H - 10}" text-anchor="middle">'
            f"{step:g}</text>"
            for step in _shown_steps(points)
        ),
    ]


def _shown_steps(points: Sequence[Point]) -> list[float]:
    """The steps themselves if they are few, else round numbers between them."""
    steps = [point.step for point in points]
    if len(steps) <= _MOST_STEPS:
        return [float(step) for step in steps]
    return [tick for tick in nice_ticks(steps[0], steps[-1]) if steps[0] <= tick <= steps[-1]]


def _level(scale: Plane, level: Level, *, points: Sequence[Point]) -> str:
    """The level's line, with its label at the end that is farther from the series."""
    y = scale.y(level.value)
    text_y = y - 5 if y > _TOP + 14 else y + 14
    first, last = (abs(points[i].value - level.value) for i in (0, -1))
    x, anchor = (_LEFT, "start") if first > last else (_W - _RIGHT, "end")
    return (
        f'<g class="level {escape(level.kind)}"><line x1="{_LEFT}" x2="{_W - _RIGHT}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/><text x="{x}" y="{text_y:.1f}" text-anchor="{anchor}">'
        f"{escape(level.label)}</text></g>"
    )


def _band(scale: Plane, points: Sequence[Point]) -> str:
    closed = [p for p in points if p.low is not None and p.high is not None]
    if len(closed) < 2:
        return ""
    upper = [f"{scale.x(p.step):.1f},{scale.y(p.high or 0.0):.1f}" for p in closed]
    lower = [f"{scale.x(p.step):.1f},{scale.y(p.low or 0.0):.1f}" for p in reversed(closed)]
    return f'<polygon class="band" points="{" ".join(upper + lower)}"/>'


def _line(scale: Plane, points: Sequence[Point]) -> str:
    path = " ".join(f"{scale.x(p.step):.1f},{scale.y(p.value):.1f}" for p in points)
    return f'<polyline class="series" points="{path}"/>'


def _dots(scale: Plane, points: Sequence[Point], *, marked: int | None) -> list[str]:
    if len(points) > 40:
        return []
    return [
        f'<circle class="{"dot best" if p.step == marked else "dot"}" cx="{scale.x(p.step):.1f}" '
        f'cy="{scale.y(p.value):.1f}" r="{5 if p.step == marked else 2.6}"><title>step {p.step}: '
        f"{p.value:.4f}{_spell_interval(p)}</title></circle>"
        for p in points
    ]


def _spell_interval(point: Point) -> str:
    if point.low is None or point.high is None:
        return ""
    return f" ({point.low:.4f} to {point.high:.4f})"


def smooth(values: Sequence[tuple[int, float]], *, most: int = 120) -> list[Point]:
    """At most `most` points of a noisy series: means of equal stretches of it."""
    size = math.ceil(len(values) / most)
    points: list[Point] = []
    for start in range(0, len(values), size):
        stretch = values[start : start + size]
        numbers = [number for _, number in stretch]
        points.append(Point(step=stretch[-1][0], value=sum(numbers) / len(numbers)))
    return points
