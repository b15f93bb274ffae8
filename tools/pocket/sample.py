"""Pages of sampled pictures with their captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from tools.pocket.captions import full_caption
from tools.pocket.scenes import COLOUR_NAMES, PLACE_NAMES, THING_NAMES

CELL = 128
LINE = 26


def draw_prompts(count: int, *, generator: torch.Generator) -> list[str]:
    """Full captions of random triples."""
    sizes = (len(THING_NAMES), len(COLOUR_NAMES), len(PLACE_NAMES))
    rows = torch.stack([torch.randint(n, (count,), generator=generator) for n in sizes], 1)
    return [full_caption(*row) for row in rows.tolist()]


def contact_sheet(
    pictures: torch.Tensor, captions: Sequence[str], *, columns: int = 8
) -> Image.Image:
    """Pictures (N, 3, H, W) in -1..1, each over its caption, enlarged without smoothing."""
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * CELL, rows * (CELL + LINE)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=10)
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for index, (picture, caption) in enumerate(zip(pixels, captions, strict=True)):
        x, y = index % columns * CELL, index // columns * (CELL + LINE)
        cell = Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.NEAREST)
        sheet.paste(cell, (x, y))
        words = caption.removeprefix("a photo of ").split()
        lines = (" ".join(words[:3]), " ".join(words[3:]))
        for number, line in enumerate(lines):
            draw.text((x + 3, y + CELL + 1 + 12 * number), line, fill=(30, 30, 30), font=font)
    return sheet
