"""The grid: one image per prompt (down) and per base model or checkpoint (across)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from dreambooth_core import files
from dreambooth_core.report.pictures import fit, font, open_rgb, png_bytes

_CELL = 144
_GAP = 8
_MARGIN = 24
_LABEL = 208
_HEADER = 40
_LINE = 18
_WRAP = 26  # letters of the prompt font that fit into the label column
_PAPER, _INK, _SOFT = (255, 255, 255), (28, 30, 34), (236, 238, 241)


def write_grid(
    path: Path, *, plan_prompts: Sequence[str], columns: Mapping[str, Sequence[Path]]
) -> None:
    """Write the grid as a PNG whose bytes depend on images and texts alone.

    Each column holds a row's suite images, round by round. The grid
    shows the first image of each prompt, which has the same seed in all columns.
    """
    files.write_bytes(path, png_bytes(draw_grid(plan_prompts, columns=columns)))


def first_of_each(paths: Sequence[Path], *, num_prompts: int) -> list[Path]:
    """The first image of every prompt. Raises ValueError if the numbers differ."""
    if not paths or len(paths) % num_prompts:
        raise ValueError(f"{len(paths)} images cannot be the same number for {num_prompts} prompts")
    return list(paths[:num_prompts])


def draw_grid(plan_prompts: Sequence[str], *, columns: Mapping[str, Sequence[Path]]) -> Image.Image:
    """The grid as an image."""
    shown = {
        name: first_of_each(paths, num_prompts=len(plan_prompts)) for name, paths in columns.items()
    }
    width = 2 * _MARGIN + _LABEL + len(shown) * (_CELL + _GAP) - _GAP
    height = 2 * _MARGIN + _HEADER + len(plan_prompts) * (_CELL + _GAP) - _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, prompt in enumerate(plan_prompts):
        _write_prompt(draw, prompt, top=_top_of(row))
    for column, (name, paths) in enumerate(shown.items()):
        left = _MARGIN + _LABEL + column * (_CELL + _GAP)
        draw.text((left, _MARGIN + 8), name, fill=_INK, font=font(15, bold=True))
        for row, path in enumerate(paths):
            _paste(sheet, draw, path, corner=(left, _top_of(row)))
    return sheet


def _top_of(row: int) -> int:
    return _MARGIN + _HEADER + row * (_CELL + _GAP)


def _write_prompt(draw: ImageDraw.ImageDraw, prompt: str, *, top: int) -> None:
    lines = textwrap.wrap(prompt, _WRAP)[: _CELL // _LINE]
    y = top + (_CELL - _LINE * len(lines)) // 2
    for line in lines:
        draw.text((_MARGIN, y), line, fill=_INK, font=font(13))
        y += _LINE


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, path: Path, *, corner: tuple[int, int]
) -> None:
    left, top = corner
    picture = fit(open_rgb(path), _CELL)
    draw.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), fill=_SOFT)
    offset = (left + (_CELL - picture.width) // 2, top + (_CELL - picture.height) // 2)
    sheet.paste(picture, offset)
