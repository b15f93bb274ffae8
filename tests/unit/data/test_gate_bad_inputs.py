"""A folder with every bad input there is: each one gets its verdict, and none is touched."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.data import messages
from dreambooth_core.data.gate import Inspection, inspect_folder
from dreambooth_core.records import GateReport
from tests.unit.data.photo_files import ROOMY, encode, exif_with_orientation, photo, png

GOOD = photo(1, (200, 150))
ALMOST_CONSTANT = Image.fromarray(
    (128 + np.random.default_rng(0).normal(0, 1, (90, 90))).astype(np.uint8)
)
KINDS = "JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC"
OF_ANOTHER_KIND = messages.REJECTED_KIND.format(kinds=KINDS)
NO_PICTURE = "cannot be decoded: the {kind} data are damaged (no picture is found in them)"


def cut(kind: str) -> bytes:
    data = encode(photo(2), kind)
    return data[: len(data) * 2 // 3]


def damaged_png() -> bytes:
    data = bytearray(encode(photo(2), "PNG"))
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    return bytes(data)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "empty: the file has 0 bytes"),
    "text.jpg": (b"This is a letter, not a photo.\n" * 40, OF_ANOTHER_KIND),
    "page.png": (b"<!doctype html><title>404</title>" * 40, OF_ANOTHER_KIND),
    "noise.webp": (np.random.default_rng(0).bytes(4000), OF_ANOTHER_KIND),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", OF_ANOTHER_KIND),
    "layers.psd": (b"8BPS\0\1" + bytes(100), OF_ANOTHER_KIND),
    "cut.jpg": (cut("JPEG"), messages.REJECTED_TRUNCATED),
    "cut.png": (cut("PNG"), messages.REJECTED_TRUNCATED),
    "cut.webp": (cut("WEBP"), messages.REJECTED_TRUNCATED),
    "cut.avif": (cut("AVIF"), messages.REJECTED_TRUNCATED),
    "cut.tif": (cut("TIFF"), messages.REJECTED_TRUNCATED),
    "cut.bmp": (cut("BMP"), messages.REJECTED_TRUNCATED),
    "cut.gif": (cut("GIF"), messages.REJECTED_TRUNCATED),
    "cut.heic": (cut("HEIF"), messages.REJECTED_TRUNCATED),
    "scan": (cut("JPEG"), messages.REJECTED_TRUNCATED),
    "only-a-head.jpg": (b"\xff\xd8\xff\xe0" + bytes(500), NO_PICTURE.format(kind="JPEG")),
    "only-a-head.gif": (b"GIF89a" + bytes(300), "cannot be decoded: the GIF data are damaged"),
    "damaged.png": (
        damaged_png(),
        "cannot be decoded: the PNG data are damaged (unrecognized data",
    ),
    "bomb.png": (
        png((60_000, 60_000), bytes(999)),
        "too many pixels: 3600.0 megapixels, at most 100 are allowed (data.max_megapixels)",
    ),
    "large.png": (
        png((20_000, 6_000), bytes(999)),
        "too many pixels: 120.0 megapixels, at most 100 are allowed (data.max_megapixels)",
    ),
    "dot.png": (
        encode(photo(3, (1, 1)), "PNG"),
        "too small: 1 x 1 px, the shorter side must have at least 64 px (data.min_side)",
    ),
    "thin.bmp": (
        encode(photo(3, (300, 63)), "BMP"),
        "too small: 300 x 63 px, the shorter side must have at least 64 px (data.min_side)",
    ),
    "white.png": (
        encode(Image.new("RGB", (90, 90), "white"), "PNG"),
        "blank or almost constant: its grey levels have a standard deviation of 0.0 of 255, "
        "at least 4 is asked (data.min_contrast)",
    ),
    "lens-cap.png": (
        encode(ALMOST_CONSTANT, "PNG"),
        "blank or almost constant: its grey levels have a standard deviation of 1.0 of 255",
    ),
    "invisible.png": (
        encode(Image.merge("RGBA", (*photo(4).split(), Image.new("L", photo(4).size, 0))), "PNG"),
        "blank or almost constant",
    ),
    "height-map.tif": (
        encode(Image.new("F", (90, 90), 0.5), "TIFF"),
        "cannot be decoded: 32-bit pixels have no agreed range, so save it with 8 or 16 bit",
    ),
    "camera.dng": (
        encode(photo(5), "TIFF"),
        "a camera's raw file (.dng): export it as JPEG or PNG",
    ),
    "good_again.png": (
        encode(GOOD, "PNG"),
        "the same picture, pixel by pixel, as good.png, which stays",
    ),
    "good_as.bmp": (
        encode(GOOD, "BMP"),
        "the same picture, pixel by pixel, as good.png, which stays",
    ),
    "good_lying.png": (
        encode(GOOD.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif_with_orientation(6)),
        "the same picture, pixel by pixel, as good.png, which stays",
    ),
    "good_smaller.jpg": (
        encode(GOOD.resize((100, 75)), "JPEG", quality=60),
        "almost the same picture as good.png, which stays: their perceptual hashes differ in",
    ),
    "good_brighter.webp": (
        encode(GOOD.point(lambda level: min(255, level + 6)), "WEBP"),
        "almost the same picture as good.png, which stays: their perceptual hashes differ in",
    ),
}

SKIPPED_FILES: dict[str, tuple[bytes, str]] = {
    ".hidden.jpg": (encode(photo(6), "JPEG"), "hidden file"),
    "._good.png": (b"\0\5\x16\7" + bytes(80), "hidden file"),
    ".DS_Store": (b"\0\0\0\1Bud1", "hidden file"),
    "Thumbs.db": (b"\xd0\xcf\x11\xe0", "a file browser's own file"),
    "desktop.ini": (b"[.ShellClassInfo]", "a file browser's own file"),
    "notes.txt": (b"which photos to take next\n", messages.SKIPPED_OTHER),
    "BM.txt": (b"BM is how many a text begins, and every bitmap too\n", messages.SKIPPED_OTHER),
    "empty.txt": (b"", messages.SKIPPED_OTHER),
    "live.mov": (b"\0\0\0\x14ftypqt  " + bytes(40), messages.SKIPPED_OTHER),
    "sound.wav": (b"RIFF\x24\0\0\0WAVEfmt ", messages.SKIPPED_OTHER),
    "README": (b"photos of my mug\n", messages.SKIPPED_OTHER),
    "two\nlines.txt": (b"x", messages.SKIPPED_OTHER),
}

SKIPPED_ENTRIES: dict[str, str] = {
    "sub-folder": messages.SKIPPED_FOLDER,
    "x.png": messages.SKIPPED_FOLDER,
    "folder-link.png": messages.SKIPPED_FOLDER,
    "pipe.jpg": messages.SKIPPED_SPECIAL,
    "outside.png": messages.SKIPPED_LINK_OUTSIDE,
    "outside-folder": messages.SKIPPED_LINK_OUTSIDE,
    "device.jpg": messages.SKIPPED_LINK_OUTSIDE,
    "nowhere.png": messages.SKIPPED_LINK_NOWHERE,
    "loop.png": messages.SKIPPED_LINK_LOOP,
    "loop-a.png": messages.SKIPPED_LINK_LOOP,
    "loop-b.png": messages.SKIPPED_LINK_LOOP,
}

ACCEPTED = ("another.gif", "good.png", "no-suffix", "ümläut.heic")


def fill(folder: Path) -> None:
    for name, (data, _) in {**BAD_FILES, **SKIPPED_FILES}.items():
        (folder / name).write_bytes(data)
    (folder / "good.png").write_bytes(encode(GOOD, "PNG"))
    (folder / "another.gif").write_bytes(encode(photo(7), "GIF"))
    (folder / "no-suffix").write_bytes(encode(photo(8), "JPEG"))
    (folder / "ümläut.heic").write_bytes(encode(photo(9), "HEIF"))
    for name in ("sub-folder", "x.png"):
        (folder / name).mkdir()
        (folder / name / "inside.png").write_bytes(encode(photo(10), "PNG"))
    outside = folder.parent / "elsewhere"
    outside.mkdir()
    (outside / "photo.png").write_bytes(encode(photo(11), "PNG"))
    os.mkfifo(folder / "pipe.jpg")
    links = {
        "folder-link.png": "sub-folder",
        "outside.png": "../elsewhere/photo.png",
        "outside-folder": "../elsewhere",
        "device.jpg": "/dev/zero",
        "nowhere.png": "not-there.png",
        "loop.png": "loop.png",
        "loop-a.png": "loop-b.png",
        "loop-b.png": "loop-a.png",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate") / "photos"
    folder.mkdir()
    fill(folder)
    return folder


def inspect(folder: Path, scratch: Path) -> Inspection:
    return inspect_folder(folder, ROOMY, subject="mug", scratch=scratch)


@pytest.fixture(scope="module")
def report(bad_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> GateReport:
    return inspect(bad_folder, tmp_path_factory.mktemp("scratch")).report


@pytest.mark.parametrize("name", sorted(BAD_FILES))
def test_each_bad_photo_is_rejected_with_its_reason(report: GateReport, name: str) -> None:
    reasons = {each.name: each.reason for each in report.rejected}
    assert reasons[name].startswith(BAD_FILES[name][1])


@pytest.mark.parametrize("name", sorted({**SKIPPED_FILES, **SKIPPED_ENTRIES}))
def test_entries_other_than_photos_are_skipped_with_a_reason(report: GateReport, name: str) -> None:
    reasons = {each.name: each.reason for each in report.skipped}
    expected = SKIPPED_ENTRIES.get(name) or SKIPPED_FILES[name][1]
    assert reasons[name.replace("\n", "\\n")] == expected


def test_report_lists_every_entry_once_and_accepts_good_ones(
    report: GateReport, bad_folder: Path
) -> None:
    named = [each.name for each in (*report.accepted, *report.rejected, *report.skipped)]
    entries = [path.name.replace("\n", "\\n") for path in bad_folder.iterdir()]
    assert sorted(named) == sorted(entries)
    assert len(BAD_FILES) + len(SKIPPED_FILES) + len(SKIPPED_ENTRIES) == 55
    assert tuple(each.name for each in report.accepted) == ACCEPTED


def fingerprints(folder: Path) -> dict[str, tuple[int, int, str]]:
    found: dict[str, tuple[int, int, str]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (status.st_mtime_ns, status.st_mode, hashlib.sha256(content).hexdigest())
    return found


def test_no_file_of_the_user_is_changed(bad_folder: Path, tmp_path: Path) -> None:
    before = fingerprints(bad_folder.parent)
    inspect(bad_folder, tmp_path)
    assert fingerprints(bad_folder.parent) == before


def test_bytes_do_not_depend_on_the_order_of_files(
    bad_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = inspect(bad_folder, tmp_path / "first")
    listed = sorted(bad_folder.iterdir(), reverse=True)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(listed))
    second = inspect(bad_folder, tmp_path / "second")
    assert second.report.to_json() == first.report.to_json()
    copies = [[copy.read_bytes() for copy in each.copies] for each in (first, second)]
    assert copies[0] == copies[1]
    assert len(copies[0]) == len(ACCEPTED)


# ---- permissions --------------------------------------------------------------------------------

NOBODY = 65534


@contextlib.contextmanager
def an_ordinary_user() -> Iterator[None]:
    """root reads everything, so a test that runs as root becomes nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter (pytest's own are closed to others)."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_unreadable_files_are_sorted_by_their_names(open_folder: Path) -> None:
    photos = open_folder / "photos"
    photos.mkdir(mode=0o755)
    for name in ("closed.png", "closed"):
        (photos / name).write_bytes(encode(photo(1), "PNG"))
        (photos / name).chmod(0)
    (photos / "open.png").write_bytes(encode(photo(2), "PNG"))
    inspect(photos, open_folder / "all-is-imported")
    with an_ordinary_user():
        report = inspect(photos, open_folder / "scratch").report
    assert [(each.name, each.reason) for each in report.rejected] == [
        ("closed.png", "cannot be read: Permission denied")
    ]
    assert [(each.name, each.reason) for each in report.skipped] == [
        ("closed", "not a picture by its name, and cannot be read: Permission denied")
    ]
    assert [each.name for each in report.accepted] == ["open.png"]


def test_a_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (photos / name).write_bytes(encode(photo(1), "PNG"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    report = inspect(photos, tmp_path / "scratch").report
    assert [each.name for each in report.accepted] == ["caf\\xe9.png"]
    report.write(tmp_path)
    assert GateReport.read(tmp_path) == report
