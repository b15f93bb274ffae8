"""The eight things as polygons in three layers; coordinates -1..1, y down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Part:
    """A filled polygon with points of shape (N, 2); `role` determines its colour."""

    role: str
    points: np.ndarray
    outlined: bool = True


@dataclass(frozen=True, slots=True)
class Groups:
    """Layers from back to front; only `body` has the individual's colour and pattern."""

    back: tuple[Part, ...]
    body: tuple[Part, ...]
    front: tuple[Part, ...]


def polygon(role: str, *points: tuple[float, float], outlined: bool = True) -> Part:
    """A part with these corners."""
    return Part(role, np.array(points, dtype=float), outlined)


def ellipse(
    role: str, x: float, y: float, rx: float, ry: float, *, outlined: bool = True,
    arc: tuple[float, float] = (0.0, 360.0),
) -> Part:  # fmt: skip
    """An ellipse, or its arc (from, to, in degrees) closed by a chord."""
    start, stop = arc
    angles = np.radians(np.linspace(start, stop, 36, endpoint=stop - start < 360))
    return Part(role, np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], 1), outlined)


def box(
    role: str, x0: float, y0: float, x1: float, y1: float, *, radius: float = 0.0,
    outlined: bool = True,
) -> Part:  # fmt: skip
    """An upright rectangle, with rounded corners if `radius` is above zero."""
    if radius == 0.0:
        return polygon(role, (x0, y0), (x1, y0), (x1, y1), (x0, y1), outlined=outlined)
    centres = ((x1 - radius, y1 - radius), (x0 + radius, y1 - radius),
               (x0 + radius, y0 + radius), (x1 - radius, y0 + radius))  # fmt: skip
    points = [
        (cx + radius * math.cos(a), cy + radius * math.sin(a))
        for quarter, (cx, cy) in enumerate(centres)
        for a in np.linspace(quarter * math.pi / 2, (quarter + 1) * math.pi / 2, 6)
    ]
    return Part(role, np.array(points), outlined)


def ring(
    role: str, x: float, y: float, outer: float, inner: float, start: float, stop: float
) -> Part:
    """A bent band from angle `start` to `stop` (degrees, clockwise from the right)."""
    angles = np.radians(np.linspace(start, stop, 24))
    out = np.stack([x + outer * np.cos(angles), y + outer * np.sin(angles)], 1)
    into = np.stack([x + inner * np.cos(angles), y + inner * np.sin(angles)], 1)
    return Part(role, np.concatenate([out, into[::-1]]))


def _mug() -> Groups:
    return Groups(
        back=(),
        body=(
            ring("body", 0.52, 0.10, 0.46, 0.24, -95, 95),
            polygon("body", (-0.72, -0.78), (0.60, -0.78), (0.52, 0.92), (-0.64, 0.92)),
        ),
        front=(ellipse("inside", -0.06, -0.78, 0.66, 0.17),),
    )


def _car() -> Groups:
    return Groups(
        back=(),
        body=(
            box("body", -1.0, 0.0, 1.0, 0.66, radius=0.16),
            polygon("body", (-0.62, 0.1), (-0.42, -0.58), (0.36, -0.58), (0.68, 0.1)),
        ),
        front=(
            polygon("glass", (-0.48, -0.02), (-0.34, -0.45), (-0.06, -0.45), (-0.06, -0.02)),
            polygon("glass", (0.06, -0.02), (0.06, -0.45), (0.29, -0.45), (0.50, -0.02)),
            ellipse("dark", -0.54, 0.66, 0.29, 0.29),
            ellipse("dark", 0.54, 0.66, 0.29, 0.29),
            ellipse("metal", -0.54, 0.66, 0.13, 0.13, outlined=False),
            ellipse("metal", 0.54, 0.66, 0.13, 0.13, outlined=False),
            ellipse("lamp", 0.90, 0.24, 0.09, 0.10),
        ),
    )


def _cat() -> Groups:
    return Groups(
        back=(),
        body=(
            ring("body", 0.52, 0.52, 0.44, 0.24, -80, 110),
            ellipse("body", 0.0, 0.46, 0.56, 0.50),
            ellipse("body", 0.0, -0.36, 0.52, 0.44),
            polygon("body", (-0.52, -0.42), (-0.50, -0.98), (-0.08, -0.68)),
            polygon("body", (0.52, -0.42), (0.50, -0.98), (0.08, -0.68)),
        ),
        front=(
            ellipse("pupil", -0.20, -0.40, 0.08, 0.11, outlined=False),
            ellipse("pupil", 0.20, -0.40, 0.08, 0.11, outlined=False),
            polygon("pink", (-0.09, -0.20), (0.09, -0.20), (0.0, -0.09)),
            ellipse("shade", -0.22, 0.88, 0.19, 0.11),
            ellipse("shade", 0.22, 0.88, 0.19, 0.11),
        ),
    )


def _robot() -> Groups:
    return Groups(
        back=(
            box("metal", -0.05, -1.0, 0.05, -0.70),
            ellipse("lamp", 0.0, -0.96, 0.10, 0.10),
            box("metal", -0.86, -0.10, -0.48, 0.12),
            box("metal", 0.48, -0.10, 0.86, 0.12),
            box("metal", -0.86, 0.02, -0.66, 0.48),
            box("metal", 0.66, 0.02, 0.86, 0.48),
            box("dark", -0.42, 0.55, -0.10, 0.96),
            box("dark", 0.10, 0.55, 0.42, 0.96),
        ),
        body=(
            box("body", -0.52, -0.76, 0.52, -0.20),
            box("body", -0.58, -0.14, 0.58, 0.70),
        ),
        front=(
            box("glass", -0.38, -0.62, -0.10, -0.38),
            box("glass", 0.10, -0.62, 0.38, -0.38),
        ),
    )


def _backpack() -> Groups:
    return Groups(
        back=(
            ring("dark", 0.0, -0.78, 0.26, 0.13, 180, 360),
            box("dark", -0.80, -0.10, -0.50, 0.70, radius=0.14),
            box("dark", 0.50, -0.10, 0.80, 0.70, radius=0.14),
        ),
        body=(box("body", -0.62, -0.82, 0.62, 0.92, radius=0.36),),
        front=(
            box("shade", -0.42, 0.30, 0.42, 0.78, radius=0.10),
            box("metal", -0.50, -0.16, 0.50, -0.08, outlined=False),
            box("metal", -0.08, 0.26, 0.08, 0.44, outlined=False),
        ),
    )


def _duck() -> Groups:
    return Groups(
        back=(polygon("beak", (0.62, -0.46), (1.0, -0.34), (0.98, -0.22), (0.62, -0.16)),),
        body=(
            ellipse("body", -0.06, 0.44, 0.84, 0.48),
            polygon("body", (-0.72, 0.36), (-1.0, -0.14), (-0.36, 0.10)),
            ellipse("body", 0.34, -0.38, 0.42, 0.42),
            polygon("body", (-0.02, 0.2), (0.02, -0.3), (0.62, -0.1), (0.62, 0.4)),
        ),
        front=(
            ellipse("pupil", 0.46, -0.48, 0.09, 0.10, outlined=False),
            ellipse("shade", -0.22, 0.46, 0.36, 0.22),
        ),
    )


def _rocket() -> Groups:
    angles = np.linspace(0, math.pi, 30)
    hull = np.stack([0.40 * np.cos(angles), 0.45 - 1.45 * np.sin(angles) ** 0.8], 1)
    return Groups(
        back=(
            polygon("beak", (-0.24, 0.60), (0.24, 0.60), (0.0, 1.02)),
            polygon("dark", (-0.30, 0.05), (-0.78, 0.62), (-0.74, 0.84), (-0.30, 0.56)),
            polygon("dark", (0.30, 0.05), (0.78, 0.62), (0.74, 0.84), (0.30, 0.56)),
        ),
        body=(
            Part("body", hull),
            polygon("body", (-0.40, 0.44), (0.40, 0.44), (0.30, 0.68), (-0.30, 0.68)),
        ),
        front=(ellipse("glass", 0.0, -0.30, 0.19, 0.19),),
    )


def _umbrella() -> Groups:
    dome = ellipse("body", 0.0, 0.06, 1.0, 0.96, arc=(180, 360)).points
    scallops = [
        (x + 0.25 * math.cos(a), 0.06 - 0.13 * math.sin(a))
        for x in (0.75, 0.25, -0.25, -0.75)
        for a in np.linspace(0, math.pi, 8)
    ]
    canopy = np.concatenate([dome, np.array(scallops)])
    return Groups(
        back=(
            box("metal", -0.05, -1.0, 0.05, 0.78),
            ring("dark", 0.17, 0.74, 0.23, 0.10, 0, 180),
        ),
        body=(Part("body", canopy),),
        front=(),
    )


_MAKERS: dict[str, Callable[[], Groups]] = {
    "mug": _mug, "car": _car, "cat": _cat, "robot": _robot,
    "backpack": _backpack, "duck": _duck, "rocket": _rocket, "umbrella": _umbrella,
}  # fmt: skip
#: Position and size of the face on each thing: x, y, size.
FACE_ANCHORS: dict[str, tuple[float, float, float]] = {
    "mug": (-0.06, 0.08, 1.0), "car": (0.0, 0.30, 0.62), "cat": (0.0, -0.30, 0.85),
    "robot": (0.0, 0.26, 0.95), "backpack": (0.0, -0.42, 0.85), "duck": (0.34, -0.34, 0.66),
    "rocket": (0.0, 0.24, 0.62), "umbrella": (0.0, -0.42, 0.95),
}  # fmt: skip


def _widened(parts: tuple[Part, ...], *, aspect: float) -> tuple[Part, ...]:
    factor = np.array([aspect, 1.0])
    return tuple(Part(p.role, p.points * factor, p.outlined) for p in parts)


def thing_parts(thing: str, *, aspect: float) -> Groups:
    """The polygons of a thing, scaled horizontally by `aspect`."""
    groups = _MAKERS[thing]()
    return Groups(
        back=_widened(groups.back, aspect=aspect),
        body=_widened(groups.body, aspect=aspect),
        front=_widened(groups.front, aspect=aspect),
    )


def face_parts(anchor: tuple[float, float, float], *, aspect: float) -> list[Part]:
    """Two big eyes and a smile around the anchor (x, y, size)."""
    x, y, size = anchor
    parts = [
        *(ellipse("white", x + s * 0.26 * size, y - 0.14 * size, 0.20 * size, 0.22 * size)
          for s in (-1, 1)),
        *(ellipse("pupil", x + s * 0.24 * size, y - 0.11 * size, 0.09 * size, 0.11 * size,
                  outlined=False) for s in (-1, 1)),
        ring("pupil", x, y + 0.12 * size, 0.30 * size, 0.18 * size, 15, 165),
    ]  # fmt: skip
    return list(_widened(tuple(parts), aspect=aspect))
