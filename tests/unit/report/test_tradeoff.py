"""The plot of subject against prompt."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dreambooth_core.report.tradeoff import Place, scatter


def place(name: str, kind: str, prompt: float, subject: float) -> Place:
    return Place(name=name, label=name, kind=kind, prompt=prompt, subject=subject)


PLACES = [
    place("base", "base", 0.30, 0.20),
    place("<100>", "chosen", 0.29, 0.80),
    place("200", "checkpoint", 0.20, 0.90),
]


def test_better_prompts_are_right_and_likeness_is_up() -> None:
    svg = scatter(PLACES, photos=0.95, min_prompt=0.28)
    ElementTree.fromstring(svg)
    dots = {
        kind: (float(x), float(y))
        for kind, x, y in re.findall(r'class="dot (\w+)" cx="([\d.]+)" cy="([\d.]+)"', svg)
    }
    assert dots["checkpoint"][0] < dots["chosen"][0] < dots["base"][0]
    assert dots["checkpoint"][1] < dots["chosen"][1] < dots["base"][1]
    assert "limit 0.280" in svg
    assert "the photos 0.950" in svg


def test_the_chosen_point_is_larger_and_its_name_is_escaped() -> None:
    svg = scatter(PLACES)
    assert re.search(r'class="dot chosen"[^>]* r="8"', svg)
    assert "<100>" not in svg
    assert ">&lt;100&gt;</text>" in svg


def test_label_that_would_cover_another_is_left_out() -> None:
    crowd = [place(f"step {i}", "checkpoint", 0.3, 0.8 + i / 1000) for i in range(20)]
    svg = scatter([place("chosen", "chosen", 0.3, 0.8), *crowd, PLACES[0]])
    assert ">chosen</text>" in svg
    assert svg.count("<circle") == 22
    assert svg.count('class="name') < 10


def test_a_plot_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one place"):
        scatter([])
