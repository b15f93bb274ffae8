"""The report page: what stands on it, and what never does."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

from dreambooth_core.report import live
from dreambooth_core.report.page import render_page
from tests.unit.report.made_up import GATE, SELECTION, VERDICT, page_content

_VOID = {"meta", "img", "input", "rect", "line", "circle", "polyline", "polygon"}


class _Balance(HTMLParser):
    """Checks that every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def text_of(html: str) -> str:
    parser = _Balance()
    parser.feed(html)
    assert not parser.open
    return " ".join(" ".join(parser.texts).split())


def test_the_page_shows_every_rows_numbers_with_their_intervals(tmp_path: Path) -> None:
    text = text_of(render_page(page_content(tmp_path)))
    for number in ("0.512", "0.678", "0.789", "0.901", "0.812", "0.301", "0.423", "0.334"):
        assert number in text
    assert "0.778 – 0.802" in text  # DINO of checkpoint-200


def test_top_of_the_page_shows_the_selection_on_fresh_seeds(tmp_path: Path) -> None:
    text = text_of(render_page(page_content(tmp_path)))
    assert "DINO 0.777 +0.265 from 0.512 likeness to the subject; real photos 0.901" in text
    assert "checkpoint-200 on 4 images with fresh seeds" in text


def test_page_shows_choice_reason_and_verdict(tmp_path: Path) -> None:
    text = text_of(render_page(page_content(tmp_path)))
    assert (
        "The chosen checkpoint is checkpoint-200 , registered as dreambooth-mug version 2" in text
    )
    assert SELECTION.rule in text
    assert VERDICT.why in text
    assert "+0.032" in text


def test_the_page_shows_gate_settings_and_lineage(tmp_path: Path) -> None:
    text = text_of(render_page(page_content(tmp_path)))
    assert "1 accepted, 1 rejected, 1 skipped" in text
    assert "fewer than 3 photos" in text
    assert "dark.jpg rejected blank" in text
    assert "train.learning_rate 5e-05" in text
    assert "train.lora null" in text
    assert "e" * 64 in text


def test_the_page_says_that_div_is_not_lpips(tmp_path: Path) -> None:
    page = text_of(render_page(page_content(tmp_path)))
    assert "DIV is the mean distance between the DINO patches" in page


def test_prompts_and_file_names_are_escaped(tmp_path: Path) -> None:
    html = render_page(page_content(tmp_path))
    assert "<b>sks</b>" not in html
    assert "&lt;b&gt;sks&lt;/b&gt; mug &amp; &#34;friends&#34;" in html
    assert "<i>.jpg" not in html


def test_the_page_loads_nothing_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    html = render_page(page_content(tmp_path))
    assert not re.search(r"src=\"(?!data:)", html)
    assert set(re.findall(r"href=\"([^\"]+)\"", html)) == {"http://127.0.0.1:5000/#/x"}
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline';" in html


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    html = render_page(page_content(tmp_path))
    assert html == render_page(page_content(tmp_path))
    assert str(tmp_path) not in html


def test_a_light_and_a_dark_scheme_are_there(tmp_path: Path) -> None:
    assert "prefers-color-scheme: dark" in render_page(page_content(tmp_path))


def test_references_stand_apart_and_the_chosen_row_is_marked(tmp_path: Path) -> None:
    html = render_page(page_content(tmp_path))
    assert len(re.findall(r'<tr class="reference">', html)) == 2
    assert len(re.findall(r'<tr class=" chosen">', html)) == 1
    peaks = re.findall(r'peak"><span class="mean">([\d.]+)<', html)
    assert "0.789" in peaks
    assert not {"0.678", "0.901"} & set(peaks)  # the real photos are no contender


def test_page_shows_the_standing_of_its_version(tmp_path: Path) -> None:
    html = render_page(page_content(tmp_path))
    assert "Champion Promoted by ada on 2026-01-02." in text_of(html)
    assert live.version_of(html) == 2


def test_live_parts_replace_those_of_an_earlier_page(tmp_path: Path) -> None:
    content = page_content(tmp_path)
    earlier = render_page(dataclasses.replace(content, verdict=None))
    later = live.Standing("Former champion", "plain", "Rolled back by <b>ada</b>.")
    parts = live.render_parts(2, standing=later, verdict=VERDICT, commands=content.commands)
    wanted = render_page(dataclasses.replace(content, standing=later))
    assert live.with_parts(earlier, parts) == wanted
    assert "<b>ada" not in wanted


def test_a_page_without_optional_parts_is_whole(tmp_path: Path) -> None:
    content = dataclasses.replace(
        page_content(tmp_path), registered=None, verdict=None, losses=(), limits={}, settings={},
        lineage={}, gate=GATE.model_copy(update={"warnings": (), "rejected": (), "skipped": ()}),
    )  # fmt: skip
    assert "This version has not been compared yet" in text_of(render_page(content))
