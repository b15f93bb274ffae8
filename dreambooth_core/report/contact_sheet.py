"""A contact sheet: all images of a request at one glance, each with its file and seed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

from PIL import Image, ImageDraw

from dreambooth_core.report.pictures import fit, font

_CELL = 224
_LABEL = 20
_GAP = 12
_MARGIN = 20
_LINE = 20
_LETTER = 7.6  # mean width of the title's font in pixels
_PAPER, _INK, _SOFT = (255, 255, 255), (28, 30, 34), (90, 95, 102)


def draw_sheet(title: str, images: Mapping[str, Image.Image]) -> Image.Image:
    """The images by their labels in a square of rows and columns, below the title."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width = 2 * _MARGIN + columns * (_CELL + _GAP) - _GAP
    lines = textwrap.wrap(title, max(20, int((width - 2 * _MARGIN) / _LETTER)))
    top = _MARGIN + _LINE * len(lines) + _GAP
    height = top + rows * (_CELL + _LABEL + _GAP) - _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, fill=_INK, font=font(14))
    for index, (label, image) in enumerate(images.items()):
        row, column = divmod(index, columns)
        left = _MARGIN + column * (_CELL + _GAP)
        y = top + row * (_CELL + _LABEL + _GAP)
        small = fit(image, _CELL)
        sheet.paste(small, (left + (_CELL - small.width) // 2, y + (_CELL - small.height) // 2))
        draw.text((left, y + _CELL + 3), label, fill=_SOFT, font=font(12))
    return sheet
