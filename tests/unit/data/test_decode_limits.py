"""A hostile photo costs bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth_core.data.decode import decode
from dreambooth_core.data.jpeg import num_scans
from dreambooth_core.data.webp import canvas_size
from dreambooth_core.errors import DataError
from tests.paths import ROOT
from tests.unit.data.photo_files import encode, photo

SIZE = (2000, 1500)


def scanned_again(data: bytes, times: int) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * times + data[-2:]


def read(path: Path) -> Image.Image:
    return decode(path, background="#ffffff", max_pixels=100_000_000).image


def test_progressive_jpeg_with_thousands_of_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(scanned_again(encode(photo(1, SIZE), "JPEG", progressive=True), 2000))
    with pytest.raises(DataError, match=r"of 3\.0 megapixels with more than 666 scans"):
        read(path)


def test_scans_are_those_of_the_first_picture_alone(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    plain = encode(photo(1), "JPEG", comment=b"\xff\xda" * 99, exif=b"Exif\0\0" + b"\xff\xda" * 99)
    path.write_bytes(plain + encode(photo(2), "JPEG", progressive=True))
    assert num_scans(path, at_most=99) == 1
    path.write_bytes(encode(photo(2), "JPEG", progressive=True))
    assert num_scans(path, at_most=99) == 10
    assert num_scans(path, at_most=3) == 4


@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xda", b"\xff\xda\0", b"\xff\xda\0\0" * 9])
def test_scans_of_a_cut_file_are_counted_to_its_end(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8" + end)
    assert num_scans(path, at_most=99) == end.count(b"\xff\xda")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "CMYK"])
def test_decoding_takes_at_most_ten_bytes_per_pixel(tmp_path: Path, mode: str) -> None:
    side = 4000
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    Image.new(mode, (side, side)).save(path)
    assert 4 * side * side < peak_bytes(path, max_pixels=side * side) <= 10 * side * side


PROGRAM = """
import sys
from pathlib import Path
from dreambooth_core.data.decode import decode
from dreambooth_core.errors import DataError

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

before = peak()
try:
    decode(Path(sys.argv[1]), background="#ffffff", max_pixels=int(sys.argv[2]))
except DataError as error:
    print(error, file=sys.stderr)
print((peak() - before) * 1024)
"""


def peak_bytes(path: Path, *, max_pixels: int) -> int:
    """The memory that decoding takes. getrusage would count the parent's before the fork."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(max_pixels)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.parametrize("kind", ["webp", "avif"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_formats_that_take_more_memory_may_have_fewer_pixels(
    tmp_path: Path, kind: str, mode: str
) -> None:
    side = 3000
    path = tmp_path / f"photo.{kind}"
    options: dict[str, Any] = {"speed": 10} if kind == "avif" else {}
    Image.new(mode, (side, side)).save(path, **options)
    with pytest.raises(DataError, match=rf"too many pixels for {kind.upper()}.*: 9.0 megapixels"):
        decode(path, background="#ffffff", max_pixels=side * side)
    enough = 2 * side * side
    assert 4 * side * side < peak_bytes(path, max_pixels=enough) <= 10 * enough


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}])
@pytest.mark.parametrize("size", [(70, 50), (1, 1), (300, 4000)])
def test_size_of_a_webp_file_is_read_from_its_header(
    tmp_path: Path, size: tuple[int, int], options: dict[str, Any]
) -> None:
    path = tmp_path / "photo.webp"
    Image.new("RGB", size).save(path, **options)
    assert canvas_size(path) == size
    path.write_bytes(path.read_bytes()[:29])
    assert canvas_size(path) is None


def test_small_webp_file_with_a_huge_canvas_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.webp"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    data = path.read_bytes()
    assert data[12:16] == b"VP8X"
    path.write_bytes(data[:24] + (12_000 - 1).to_bytes(3, "little") * 2 + data[30:])
    with pytest.raises(DataError, match=r"144\.0 megapixels, at most 57 are allowed"):
        read(path)
    assert peak_bytes(path, max_pixels=100_000_000) < 40e6
