"""How an image was generated, inside its PNG file: for other programs, and as JSON.

`parameters` is the text that AUTOMATIC1111's web UI writes and that its PNG Info tab, CivitAI and
most viewers read: the prompt, the negative prompt, and a last line of `Key: value` pairs, whose
values are quoted as JSON if they have a comma, a colon or a line break.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image, PngImagePlugin

from dreambooth_core import files

PARAMETERS = "parameters"
RECORD = "dreambooth"
"""The names of the two text chunks."""
_HASH_LETTERS = 10


@dataclass(frozen=True)
class ImageRecord:
    """Everything that an image depends on; `model` says which model, as far as it is known."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance: float
    sampler: str
    width: int
    height: int
    batch_size: int
    device: str
    dtype: str
    model: Mapping[str, str]
    program: str
    strength: float = 1.0
    """How much of the training the model shows."""

    def to_json(self) -> dict[str, Any]:
        """The record; a strength of 1 is left out."""
        return {k: v for k, v in asdict(self).items() if (k, v) != ("strength", 1.0)}


def encode_png(image: Image.Image, record: ImageRecord) -> bytes:
    """The image as a PNG with its record in both forms; text of any script is kept."""
    info = PngImagePlugin.PngInfo()
    info.add_text(PARAMETERS, parameters_of(record))
    info.add_text(RECORD, files.canonical_json(record.to_json()))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def parameters_of(record: ImageRecord) -> str:
    """The record as AUTOMATIC1111's web UI spells it."""
    values: dict[str, Any] = {
        "Steps": record.steps,
        "Sampler": record.sampler,
        "CFG scale": f"{record.guidance:g}",
        "Seed": record.seed,
        "Size": f"{record.width}x{record.height}",
        "Model hash": record.model.get("sha256", "")[:_HASH_LETTERS],
        "Model": record.model["name"] + (f" {v}" if (v := record.model.get("version")) else ""),
        "Run": record.model.get("run_id", ""),
        "Strength": "" if record.strength == 1.0 else f"{record.strength:g}",
        "Version": record.program,
    }
    last = ", ".join(
        f"{key}: {_quoted(str(value))}" for key, value in values.items() if value != ""
    )
    negative = [f"Negative prompt: {record.negative_prompt}"] if record.negative_prompt else []
    return "\n".join([record.prompt, *negative, last])


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & {",", ":", "\n"} else value
