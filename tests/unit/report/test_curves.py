"""Charts as inline SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dreambooth_core.report.curves import Level, Point, line_chart, nice_ticks, smooth

POINTS = [
    Point(step=0, value=0.2, low=0.1, high=0.3),
    Point(step=50, value=0.5, low=0.4, high=0.6),
    Point(step=100, value=0.4, low=0.3, high=0.5),
]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.412, 0.9, [0.4, 0.6, 0.8, 1.0]),
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (-0.02, 0.07, [-0.025, 0.0, 0.025, 0.05, 0.075]),
        (0.5, 0.5, [0.2, 0.4, 0.6, 0.8]),
        (0.0, 0.0, [-0.5, -0.25, 0.0, 0.25, 0.5]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_chart_is_well_formed_and_draws_higher_values_higher() -> None:
    svg = line_chart(POINTS, label="DINO over steps", marked=50)
    ElementTree.fromstring(svg)
    line = re.search(r'class="series" points="([^"]+)"', svg)
    assert line is not None
    first, second, third = (tuple(map(float, p.split(","))) for p in line[1].split())
    assert first[0] < second[0] < third[0]
    assert second[1] < third[1] < first[1]
    assert second[0] == pytest.approx((first[0] + third[0]) / 2, abs=0.1)


def test_chart_rings_the_chosen_checkpoint_and_labels_each_dot() -> None:
    svg = line_chart(POINTS, label="x", marked=50)
    assert svg.count("dot best") == 1
    assert "<title>step 50: 0.5000 (0.4000 to 0.6000)</title>" in svg


def test_labels_are_escaped() -> None:
    svg = line_chart(POINTS, label="<b>", levels=[Level(value=0.7, label="a < b", kind="real")])
    assert "<b>" not in svg
    assert "a &lt; b" in svg


def test_a_series_of_one_point_is_drawn() -> None:
    ElementTree.fromstring(line_chart([Point(step=0, value=0.5)], label="x"))


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a chart needs at least one point"):
        line_chart([], label="x")


def test_smoothing_300_losses_gives_100_means_of_three() -> None:
    points = smooth([(step, float(step)) for step in range(1, 301)])
    assert len(points) == 100
    assert (points[0].step, points[0].value) == (3, 2.0)
