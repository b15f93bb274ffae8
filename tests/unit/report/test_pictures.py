"""Pictures for pages of other programs, which limit the size."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.report import pictures


@pytest.mark.parametrize("limit", [400_000, 40_000, 4_000])
def test_noise_is_scaled_down_until_it_fits(tmp_path, limit):
    noise = np.random.default_rng(0).integers(0, 256, (900, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    uri = pictures.fitting_uri(tmp_path / "noise.png", limit)
    assert limit / 3 < len(uri) <= limit
    kind, data = uri.split(";base64,")
    assert kind == "data:image/webp"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.width / image.height == pytest.approx(1500 / 900, rel=0.05)


def test_picture_that_fits_keeps_its_size(tmp_path):
    Image.new("RGB", (700, 500), "teal").save(tmp_path / "plain.png")
    uri = pictures.fitting_uri(tmp_path / "plain.png", 400_000)
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        assert image.size == (700, 500)
