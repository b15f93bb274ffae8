"""The six places: simple backgrounds with random details."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


class _Canvas:
    """Draws in fractions of the image's side; `rng` jitters positions and colours."""

    def __init__(self, *, side: int, rng: np.random.Generator) -> None:
        self.side, self.rng = side, rng
        self.image = Image.new("RGB", (side, side))
        self._draw = ImageDraw.Draw(self.image)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def jitter(self, colour: Colour, amount: int = 10) -> Colour:
        shift = self.rng.integers(-amount, amount + 1, 3)
        red, green, blue = (int(np.clip(c + s, 0, 255)) for c, s in zip(colour, shift, strict=True))
        return red, green, blue

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        s = self.side
        self._draw.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour, *, flat: float = 1.0) -> None:
        s = self.side
        corners = ((x - radius) * s, (y - radius * flat) * s)
        self._draw.ellipse((*corners, (x + radius) * s, (y + radius * flat) * s), fill=colour)

    def triangle(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self._draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def gradient(self, top: Colour, bottom: Colour, y0: float, y1: float) -> None:
        rows = np.linspace(0, 1, max(2, int((y1 - y0) * 24)))
        for i, t in enumerate(rows):
            colour = tuple(int(a + (b - a) * t) for a, b in zip(top, bottom, strict=True))
            low = y0 + (y1 - y0) * i / len(rows)
            self.box(0, low, 1, y1, colour)  # type: ignore[arg-type]


def _beach(c: _Canvas) -> None:
    horizon, shore = c.uniform(0.32, 0.40), c.uniform(0.56, 0.64)
    c.box(0, 0, 1, horizon, c.jitter((150, 215, 245)))
    c.disc(c.uniform(0.1, 0.9), c.uniform(0.08, 0.2), 0.08, (255, 240, 160))
    c.box(0, horizon, 1, shore, c.jitter((40, 165, 200)))
    c.box(0, shore - 0.02, 1, shore + 0.02, (235, 248, 250))
    c.box(0, shore + 0.02, 1, 1, c.jitter((240, 214, 150)))


def _snow(c: _Canvas) -> None:
    horizon = c.uniform(0.47, 0.55)
    c.box(0, 0, 1, horizon, c.jitter((188, 204, 222)))
    for x in (c.uniform(0.02, 0.2), c.uniform(0.8, 0.98)):
        height = c.uniform(0.25, 0.4)
        c.triangle(
            [(x - 0.13, horizon + 0.03), (x + 0.13, horizon + 0.03), (x, horizon - height)],
            c.jitter((70, 105, 100)),
        )
        top = horizon - height
        c.triangle([(x - 0.05, top + 0.12), (x + 0.05, top + 0.12), (x, top)], (244, 248, 252))
    c.disc(c.uniform(0.2, 0.8), horizon + 0.12, 0.9, (226, 234, 244), flat=0.18)
    c.box(0, horizon + 0.06, 1, 1, (226, 234, 244))
    for _ in range(5):
        c.disc(c.uniform(0, 1), c.uniform(0, horizon), 0.02, (246, 252, 255))


def _grass(c: _Canvas) -> None:
    horizon = c.uniform(0.43, 0.52)
    c.box(0, 0, 1, horizon, c.jitter((160, 212, 250)))
    x, y = c.uniform(0.1, 0.9), c.uniform(0.1, 0.2)
    for dx in (-0.08, 0.0, 0.08):
        c.disc(x + dx, y, 0.07, (248, 250, 252), flat=0.8)
    c.disc(c.uniform(0, 1), horizon + 0.05, 0.6, c.jitter((128, 196, 96)), flat=0.25)
    c.box(0, horizon, 1, 1, c.jitter((140, 204, 84)))
    for _ in range(3):
        c.disc(c.uniform(0.03, 0.97), c.uniform(horizon + 0.08, 0.97), 0.025, (236, 236, 180))


def _night(c: _Canvas) -> None:
    horizon = c.uniform(0.58, 0.66)
    c.box(0, 0, 1, horizon, c.jitter((22, 26, 62), 6))
    moon_x, moon_y = c.uniform(0.1, 0.9), c.uniform(0.1, 0.22)
    c.disc(moon_x, moon_y, 0.085, (246, 240, 204))
    c.disc(moon_x + 0.035, moon_y - 0.02, 0.07, (22, 26, 62))
    for _ in range(4):
        c.disc(c.uniform(0, 1), c.uniform(0, horizon - 0.05), 0.018, (220, 220, 210))
    c.box(0, horizon, 1, 1, c.jitter((44, 50, 66), 5))


def _city(c: _Canvas) -> None:
    road = c.uniform(0.62, 0.68)
    c.box(0, 0, 1, road, c.jitter((214, 200, 190)))
    x = c.uniform(-0.12, 0.0)
    while x < 1.0:
        width, top = c.uniform(0.18, 0.28), c.uniform(0.05, 0.35)
        c.box(x, top, x + width - 0.02, road, c.jitter((122, 112, 116), 14))
        for row in np.arange(top + 0.06, road - 0.10, 0.16):
            c.box(x + 0.05, float(row), x + width - 0.07, float(row) + 0.07, (190, 180, 140))
        x += width
    c.box(0, road, 1, 1, c.jitter((88, 88, 94), 6))
    c.box(0, road, 1, road + 0.03, (178, 176, 174))


def _room(c: _Canvas) -> None:
    floor = c.uniform(0.60, 0.68)
    c.box(0, 0, 1, floor, c.jitter((242, 206, 176)))
    x, y = c.uniform(0.06, 0.62), c.uniform(0.06, 0.12)
    c.box(x, y, x + 0.32, y + 0.30, (160, 116, 84))
    c.box(x + 0.03, y + 0.03, x + 0.29, y + 0.27, (196, 228, 244))
    c.box(x + 0.145, y, x + 0.175, y + 0.30, (160, 116, 84))
    c.box(0, floor, 1, 1, c.jitter((164, 108, 66)))
    c.box(0, floor - 0.02, 1, floor + 0.02, (250, 240, 228))


_PLACES: dict[str, tuple[Callable[[_Canvas], None], float]] = {
    "beach": (_beach, 1.0),
    "snow": (_snow, 1.0),
    "grass": (_grass, 1.0),
    "night": (_night, 0.82),
    "city": (_city, 0.95),
    "room": (_room, 1.0),
}


def draw_place(place: str, *, backdrop: int, side: int) -> tuple[Image.Image, float]:
    """The empty place (RGB, `side` px) and its brightness (1.0 by day)."""
    painter, light = _PLACES[place]
    canvas = _Canvas(side=side, rng=np.random.default_rng(backdrop))
    painter(canvas)
    return canvas.image, light
