"""The trade-off as inline SVG: likeness to the subject over fidelity to the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from dreambooth_core.report.plane import Margins, Plane, digits_of, nice_ticks

_MARGINS = Margins(left=62, right=24, top=20, bottom=52)
_W, _H = 640, 400
_LEFT, _RIGHT = _MARGINS.left, _MARGINS.right
_TOP, _BOTTOM = _MARGINS.top, _MARGINS.bottom
_LETTER, _LINE = 7.0, 15.0  # room of a label in the chart's font


@dataclass(frozen=True, kw_only=True)
class Place:
    """A row of scores in the plot. `kind` is its CSS class: "base", "checkpoint" or "chosen"."""

    name: str
    label: str
    kind: str
    prompt: float
    subject: float


def scatter(
    places: Sequence[Place], *, photos: float | None = None, min_prompt: float | None = None
) -> Markup:
    """The plot; `photos` is the DINO of the photos, `min_prompt` the lowest CLIP-T that qualifies.

    Raises ValueError without a place.
    """
    if not places:
        raise ValueError("a plot needs at least one place")
    across = nice_ticks(*_reach([p.prompt for p in places], min_prompt), most=6)
    up = nice_ticks(*_reach([p.subject for p in places], photos), most=6)
    frame = Plane(
        size=(_W, _H), margins=_MARGINS, across=(across[0], across[-1]), up=(up[0], up[-1])
    )
    # The parts contain numbers and escaped texts only.
    parts = [
        f'<svg class="chart tradeoff" viewBox="0 0 {_W} {_H}" role="img" '
        f'aria-label="{escape(_spoken(places))}">',
        *_axes(frame, across, up),
        _limit(frame, min_prompt),
        _ceiling(frame, photos),
        _path(frame, places),
        *_points(frame, sorted(places, key=lambda place: place.kind == "chosen")),
        *_labels(frame, places),
        "</svg>",
    ]
    return Markup("\n".join(part for part in parts if part))


def _reach(values: Sequence[float], level: float | None) -> tuple[float, float]:
    every = [*values, *([] if level is None else [level])]
    return min(every), max(every)


def _spoken(places: Sequence[Place]) -> str:
    """What a screen reader says."""
    each = "; ".join(f"{p.name}: prompt {p.prompt:.3f}, subject {p.subject:.3f}" for p in places)
    return f"Subject (DINO) against prompt (CLIP-T): {each}"


def _axes(frame: Plane, across: Sequence[float], up: Sequence[float]) -> list[str]:
    bottom, digits = _H - _BOTTOM, digits_of(across)
    return [
        *frame.rules(up),
        *(
            f'<text class="tick" x="{frame.x(t):.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{t:.{digits}f}</text>"
            for t in across
        ),
        f'<text class="axis" x="{_W - _RIGHT}" y="{_H - 10}" text-anchor="end">'
        "follows the prompt (CLIP-T) →</text>",
        f'<text class="axis" x="14" y="{_TOP}" text-anchor="end" transform="rotate(-90 14 {_TOP})">'
        "like the subject (DINO) →</text>",
    ]


def _limit(frame: Plane, min_prompt: float | None) -> str:
    """The area left of the limit, where no checkpoint qualifies."""
    if min_prompt is None:
        return ""
    x = frame.x(min_prompt)
    return (
        f'<g class="level limit"><rect class="outside" x="{_LEFT}" y="{_TOP}" '
        f'width="{x - _LEFT:.1f}" height="{_H - _TOP - _BOTTOM}"/><line x1="{x:.1f}" '
        f'x2="{x:.1f}" y1="{_TOP}" y2="{_H - _BOTTOM}"/><text x="{x + 6:.1f}" '
        f'y="{_H - _BOTTOM - 8}">limit {min_prompt:.3f}</text></g>'
    )


def _ceiling(frame: Plane, photos: float | None) -> str:
    if photos is None:
        return ""
    y = frame.y(photos)
    return (
        f'<g class="level real"><line x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT + 4}" y="{y + 14:.1f}">the photos {photos:.3f}</text></g>'
    )


def _path(frame: Plane, places: Sequence[Place]) -> str:
    """A thin line through the steps, in order."""
    points = " ".join(f"{frame.x(p.prompt):.1f},{frame.y(p.subject):.1f}" for p in places)
    return f'<polyline class="way" points="{points}"/>'


def _points(frame: Plane, places: Sequence[Place]) -> list[str]:
    return [
        f'<circle class="dot {escape(p.kind)}" cx="{frame.x(p.prompt):.1f}" '
        f'cy="{frame.y(p.subject):.1f}" r="{8 if p.kind == "chosen" else 4.5}"><title>'
        f"{escape(p.name)}: CLIP-T {p.prompt:.4f}, DINO {p.subject:.4f}</title></circle>"
        for p in places
    ]


def _labels(frame: Plane, places: Sequence[Place]) -> list[str]:
    """Labels at the points, the chosen one's first; one that would cover another is left out."""
    taken = [_around(frame, place) for place in places]
    shown: list[str] = []
    for place in sorted(places, key=lambda p: ("chosen", "base", "checkpoint").index(p.kind)):
        x, y = frame.x(place.prompt), frame.y(place.subject)
        width = _LETTER * len(place.label)
        for left, anchor in ((x + 13, "start"), (x - 13 - width, "end")):
            box = (left, y - _LINE / 2, left + width, y + _LINE / 2)
            if box[0] >= _LEFT and box[2] <= _W and not any(_overlap(box, b) for b in taken):
                taken.append(box)
                at = left if anchor == "start" else left + width
                shown.append(
                    f'<text class="name {escape(place.kind)}" x="{at:.1f}" y="{y + 4:.1f}" '
                    f'text-anchor="{anchor}">{escape(place.label)}</text>'
                )
                break
    return shown


def _around(frame: Plane, place: Place) -> tuple[float, float, float, float]:
    x, y = frame.x(place.prompt), frame.y(place.subject)
    return x - 5, y - 5, x + 5, y + 5


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
