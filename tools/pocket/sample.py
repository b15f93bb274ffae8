"""Sampling from pocket-sd, and contact sheets of the samples with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from dreambooth_core.files import atomic_file
from dreambooth_core.numerics.seeding import generator_for
from tools.pocket.captions import full_caption
from tools.pocket.scenes import COLOUR_NAMES, PLACE_NAMES, THING_NAMES

SAMPLE_STEPS = 25
GUIDANCE = 3.0
#: Pixels of a cell's image and of the caption below it.
CELL, CAPTION_HEIGHT = 128, 26


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    seed: int,
    steps: int = SAMPLE_STEPS,
    guidance: float = GUIDANCE,
    batch: int = 50,
) -> torch.Tensor:
    """One image per prompt, (N, 3, H, W) in -1..1; image i depends on (seed, i) alone."""
    images = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [generator_for(seed, "sample", start + i) for i in range(len(part))]
        result = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        )
        images.append(torch.from_numpy(np.asarray(result.images)))  # type: ignore[union-attr]
    return torch.cat(images).permute(0, 3, 1, 2).mul(2).sub(1)


def draw_triples(count: int, *, generator: torch.Generator) -> torch.Tensor:
    """Random indices of thing, colour and place, (count, 3)."""
    sizes = (len(THING_NAMES), len(COLOUR_NAMES), len(PLACE_NAMES))
    return torch.stack([torch.randint(n, (count,), generator=generator) for n in sizes], 1)


def sheet_prompts(count: int, *, seed: int) -> list[str]:
    """Full captions of random triples."""
    triples = draw_triples(count, generator=generator_for(seed, "sheet"))
    return [full_caption(*triple) for triple in triples.tolist()]


def write_contact_sheet(
    path: Path, images: torch.Tensor, captions: Sequence[str], *, columns: int = 8
) -> None:
    """Write images (N, 3, H, W) in -1..1, each above its caption, as one PNG."""
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * CELL, rows * (CELL + CAPTION_HEIGHT)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=10)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for index, (image, caption) in enumerate(zip(pixels, captions, strict=True)):
        x, y = index % columns * CELL, index // columns * (CELL + CAPTION_HEIGHT)
        cell = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.NEAREST)
        sheet.paste(cell, (x, y))
        words = caption.removeprefix("a photo of ").split()
        lines = (" ".join(words[:3]), " ".join(words[3:]))
        for number, line in enumerate(lines):
            draw.text((x + 3, y + CELL + 1 + 12 * number), line, fill=(30, 30, 30), font=font)
    with atomic_file(path) as aside:
        sheet.save(aside, format="PNG", optimize=True)
