"""A hostile photo costs bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_core.data.decode import decode
from dreambooth_core.data.jpeg import num_scans
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
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from dreambooth_core.data.decode import decode\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "decode(Path(sys.argv[1]), background='#ffffff', max_pixels=100_000_000)\n"
        "print((peak() - before) * (1 if sys.platform == 'darwin' else 1024))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) <= 10 * side * side
