"""Names of uploaded files: none leads out of its folder."""

from __future__ import annotations

import pytest

pytest.importorskip("nicegui")

from app import uploads


@pytest.mark.parametrize(
    "name",
    [
        *("../cup.png", "../masks/cup.png", "../../../masks/cup.png", "/tmp/masks/cup.png"),
        *("a/masks/cup.png", "masks/../cup.png", "masks/..", "masks/", "masks", "", ".", ".."),
        *("a\0b.png", "masks/a\0.png", ".aside-cup.png", "masks/.aside-cup.png", 300 * "x"),
    ],
)
def test_name_that_leads_elsewhere_is_refused(name: str) -> None:
    assert uploads.mistake_in(name) is not None


@pytest.mark.parametrize("name", ["cup.png", "masks/cup.png", "<b>cup.png", "Tasse \u00fc.JPG"])
def test_names_that_people_give_are_kept(name: str) -> None:
    assert uploads.mistake_in(name) is None
