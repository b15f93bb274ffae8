"""The grid of prompts and checkpoints as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dreambooth_core.report.grid import draw_grid, first_of_each, write_grid
from dreambooth_core.report.pictures import fit
from tests.unit.report.made_up import PROMPTS, picture


def columns(folder: Path) -> dict[str, list[Path]]:
    return {
        name: [picture(folder, f"{name}-{i}.png", 10 * i + 100 * c) for i in range(4)]
        for c, name in enumerate(("step 0", "checkpoint-100"))
    }


def colours_of(sheet: Image.Image) -> set[tuple[int, ...]]:
    found = sheet.getcolors(maxcolors=1 << 20)
    assert found is not None
    return {colour for count, colour in found if count >= 100 * 100}  # type: ignore[misc]


def test_grid_shows_the_first_image_of_each_prompt(tmp_path: Path) -> None:
    sheet = draw_grid(PROMPTS, columns=columns(tmp_path))
    shown = {(0, 255, 90), (10, 245, 90), (100, 155, 90), (110, 145, 90)}
    assert colours_of(sheet) - {(255, 255, 255)} == shown


def test_two_grids_of_the_same_pictures_have_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        write_grid(tmp_path / name, plan_prompts=PROMPTS, columns=columns(tmp_path))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_unequal_numbers_of_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 images cannot be the same number for 2 prompts"):
        first_of_each([tmp_path] * 3, num_prompts=2)


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 64), (144, 144)), ((1024, 512), (144, 72)), ((1, 900), (1, 144))]
)
def test_pictures_are_scaled_to_the_cell_and_keep_their_shape(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert fit(Image.new("RGB", size), 144).size == expected
