"""Pictures without the text in their files: a blind comparison must not say who drew them."""

from __future__ import annotations

import base64
import io
from pathlib import Path


def data_url(path: Path) -> str:
    """The pixels of a picture as a data URL."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
