"""Any bytes under any name in a folder of photos end in a verdict or one sentence.

For ten minutes, one test at a time (docs/threats.md):
`timeout --signal INT 600 pytest -m slow --hypothesis-profile long tests/fuzz/... -k TEST`
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreambooth_core.data.decode import decode
from dreambooth_core.data.gate import inspect_folder
from dreambooth_core.errors import DataError
from dreambooth_core.records import GateReport
from tests.unit.data.photo_files import ROOMY, adobe_rgb_profile, encode, photo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

T = TypeVar("T")

SUFFIXES = ("jpg", "png", "webp", "avif", "tif", "bmp", "gif", "heic", "txt", "dng", "")
SIDES = (96, 80)


@functools.cache
def _samples() -> tuple[bytes, ...]:
    """A small photo in every format, with the options that lead through other code."""
    picture, profile = photo(1, SIDES), adobe_rgb_profile()
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = [encode(picture, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")]
    frames = {"save_all": True, "append_images": [photo(2, SIDES)]}
    return (
        *plain,
        encode(picture, "AVIF", speed=10),
        encode(picture, "HEIF"),
        encode(picture, "JPEG", progressive=True, exif=exif.tobytes(), icc_profile=profile),
        encode(picture.convert("CMYK"), "JPEG"),
        encode(picture, "PNG", exif=exif.tobytes(), icc_profile=profile),
        encode(picture.convert("RGBA"), "WEBP", lossless=True, icc_profile=profile),
        encode(picture.convert("LA"), "PNG"),
        encode(picture.convert("P"), "PNG", transparency=3),
        encode(picture.convert("LAB"), "TIFF"),
        encode(picture, "TIFF", compression="tiff_deflate", exif=exif.tobytes()),
        *(encode(picture, kind, **frames) for kind in ("GIF", "WEBP", "TIFF", "PNG", "MPO")),
    )


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A photo with bytes changed, cut, repeated or taken from another one."""
    data = bytearray(draw(st.sampled_from(_samples())))
    for _ in range(draw(st.integers(1, 6))):
        size = len(data)
        near_head = st.integers(0, min(size, 200))
        at = draw(st.one_of(near_head, st.integers(0, size)))
        kind = draw(st.sampled_from(("set", "cut", "insert", "repeat", "splice", "number")))
        if kind == "set":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "number":  # lengths and sizes
            data[at : at + 4] = draw(st.integers(0, 2**32 - 1)).to_bytes(4, draw(_ORDERS))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 400))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=64))
        elif kind == "repeat":
            end = at + draw(st.integers(1, 200))
            data[at:at] = data[at:end] * draw(st.integers(1, 20))
        else:
            other = draw(st.sampled_from(_samples()))
            data[at:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


def _outcome(call: Callable[[], T]) -> tuple[str, T | None]:
    """The text of a DataError, or the result."""
    try:
        return "", call()
    except DataError as error:
        return str(error), None


_ORDERS = st.sampled_from(("little", "big"))
_ODD_BYTES = st.binary(min_size=1, max_size=40).map(
    lambda data: os.fsdecode(data.replace(b"/", b"-").replace(b"\0", b"-"))
)
_NAMES = (
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40).filter(
        lambda name: len(os.fsencode(name)) <= 200
    )
    | _ODD_BYTES
)
_CONTENT = st.one_of(
    damaged(), st.binary(max_size=400), st.text(max_size=200).map(lambda t: t.encode())
)


@given(data=_CONTENT, suffix=st.sampled_from(SUFFIXES))
def test_any_bytes_are_a_picture_or_a_reason(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"photo.{suffix}"
        path.write_bytes(data)
        refused, decoded = _outcome(
            lambda: decode(path, background="#ffffff", max_pixels=4_000_000)
        )
        if decoded is None:
            assert refused.isprintable()
            return
        assert decoded.image.mode == "RGB"
        assert decoded.image.width * decoded.image.height <= 4_000_000


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
_LINES = st.one_of(
    st.text(max_size=80),
    _JSON.map(json.dumps),
    st.builds(
        lambda name, text: json.dumps({"file_name": name, "text": text}),
        st.sampled_from(("good.png", "../good.png", "none.png")) | _JSON,
        _JSON,
    ),
)


@given(
    entries=st.dictionaries(_NAMES, _CONTENT, max_size=4),
    suffix=st.sampled_from(SUFFIXES),
    metadata=st.none() | st.lists(_LINES, max_size=4).map("\n".join),
    caption=st.none() | st.binary(max_size=80),
    masks=st.sampled_from((None, "files")),
)
def test_any_folder_gets_one_verdict_for_each_entry(
    entries: dict[str, bytes],
    suffix: str,
    metadata: str | None,
    caption: bytes | None,
    masks: str | None,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        (photos / "masks").mkdir(parents=True)
        (photos / "good.png").write_bytes(encode(photo(3, SIDES), "PNG"))
        for number, (name, data) in enumerate(entries.items()):
            (photos / f"{number}{name}.{suffix}").write_bytes(data)
            (photos / "masks" / f"{number}{name}.png").write_bytes(data)
        if metadata is not None:
            (photos / "metadata.jsonl").write_bytes(metadata.encode("utf-8", "surrogatepass"))
        if caption is not None:
            (photos / "good.txt").write_bytes(caption)
        settings = ROOMY.model_copy(update={"masks": masks, "captions": True})
        refused, found = _outcome(
            lambda: inspect_folder(photos, settings, subject="mug", scratch=Path(folder) / "new")
        )
        if found is None:
            assert 0 < len(refused) < 2000
            return
        report = found.report
        report.write(Path(folder))
        assert GateReport.read(Path(folder)) == report
        named = [each.name for each in (*report.accepted, *report.rejected, *report.skipped)]
        assert len(named) == len({*named})
        assert all(name.isprintable() for name in named)
