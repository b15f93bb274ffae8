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


def noise(folder, count, side):
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(count)]


def size_of(uri):
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        return image.format, image.size


@pytest.mark.parametrize(
    ("limit", "size"), [(10_000_000, (512, 512)), (1_200_000, (256, 256)), (100_000, (96, 96))]
)
def test_many_pictures_shrink_alike_until_they_fit_together(tmp_path, limit, size):
    uris = pictures.data_uris(noise(tmp_path, 14, 600), limit_chars=limit)
    assert sum(map(len, uris.values())) <= limit
    assert {size_of(uri) for uri in uris.values()} == {("WEBP", size)}


def test_small_pictures_stay_lossless_and_repeated_ones_count_once(tmp_path):
    paths = noise(tmp_path, 3, 64)
    uris = pictures.data_uris([*paths, *paths], limit_chars=60_000)
    assert list(uris) == paths
    assert {size_of(uri) for uri in uris.values()} == {("PNG", (64, 64))}


def test_more_pictures_than_ever_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 images do not fit into 100 characters"):
        pictures.data_uris(noise(tmp_path, 3, 200), limit_chars=100)


def test_picture_that_fits_keeps_its_size(tmp_path):
    Image.new("RGB", (700, 500), "teal").save(tmp_path / "plain.png")
    uri = pictures.fitting_uri(tmp_path / "plain.png", 400_000)
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        assert image.size == (700, 500)
