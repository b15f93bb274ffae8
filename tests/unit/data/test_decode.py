"""Every kind of photo becomes the same upright sRGB pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dreambooth_core.data import messages
from dreambooth_core.data.decode import Decoded, decode
from dreambooth_core.errors import DataError
from tests.unit.data.photo_files import (
    LAID_DOWN,
    adobe_rgb_profile,
    adobe_to_srgb,
    encode,
    exif_with_orientation,
    photo,
    png,
    png16,
    tiff16_rgb,
)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Decoded]:
    def read_bytes(data: bytes, name: str = "photo", background: str = "#ffffff") -> Decoded:
        path = tmp_path / name
        path.write_bytes(data)
        return decode(path, background=background, max_pixels=1_000_000)

    return read_bytes


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    assert one.mode == other.mode == "RGB"
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def plain(colour: object, mode: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


# ---- kinds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 6),
        ("JPEG", {"quality": 95, "subsampling": 0}, 3),
        ("JPEG", {"quality": 95, "progressive": True}, 6),
        ("JPEG", {"quality": 95, "keep_rgb": True}, 3),
        ("MPO", {"quality": 95}, 6),
        ("AVIF", {"quality": 95}, 6),
        ("HEIF", {"quality": 95}, 6),
        ("GIF", {}, 14),
    ],
)
def test_each_kind_of_file_gives_the_picture_that_was_saved(read, kind, options, tolerance) -> None:
    decoded = read(encode(photo(1), kind, **options))
    assert mean_difference(decoded.image, photo(1)) <= tolerance
    assert decoded.notes == ()
    assert not decoded.turned


def test_the_name_does_not_matter_for_a_whole_picture(read) -> None:
    decoded = read(encode(photo(1), "PNG"), name="photo.jpg")
    assert mean_difference(decoded.image, photo(1)) == 0


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_first_of_several_frames_is_used_with_a_warning(read, kind) -> None:
    options = {"quality": 95} if kind in ("WEBP", "AVIF") else {}
    data = encode(photo(1), kind, save_all=True, append_images=[photo(2), photo(3)], **options)
    decoded = read(data)
    assert mean_difference(decoded.image, photo(1)) <= 14 < mean_difference(photo(1), photo(2))
    assert decoded.notes == (messages.WARNED_FRAMES,)


@pytest.mark.parametrize("kind", ["MPO", "HEIF"])
def test_the_second_picture_of_a_phone_is_left_out_silently(read, kind) -> None:
    data = encode(photo(1), kind, save_all=True, append_images=[photo(2)], quality=95)
    decoded = read(data)
    assert mean_difference(decoded.image, photo(1)) <= 6
    assert decoded.notes == ()


# ---- orientation --------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_all_eight_orientations_give_the_same_upright_picture(
    read, kind, options, orientation
) -> None:
    stored = LAID_DOWN[orientation](photo(1))
    decoded = read(encode(stored, kind, exif=exif_with_orientation(orientation), **options))
    assert mean_difference(decoded.image, photo(1)) <= 6
    assert decoded.turned == (orientation != 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_turned_by_its_own_boxes(read, orientation) -> None:
    stored = LAID_DOWN[orientation](photo(1))
    data = encode(stored, "HEIF", exif=exif_with_orientation(orientation), quality=95)
    assert (b"irot" in data or b"imir" in data) == (orientation != 1)
    assert mean_difference(read(data).image, photo(1)) <= 6


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(read, orientation) -> None:
    decoded = read(encode(photo(1), "PNG", exif=exif_with_orientation(orientation)))
    assert mean_difference(decoded.image, photo(1)) == 0
    assert not decoded.turned


def test_broken_exif_data_leave_the_picture_as_it_is_stored(read) -> None:
    decoded = read(encode(photo(1), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff\xff"))
    assert mean_difference(decoded.image, photo(1)) == 0


# ---- modes --------------------------------------------------------------------------------------

TRANSPARENT_RED = (255, 0, 0, 0)
HALF_RED = (255, 0, 0, 128)


def palette_with_transparency() -> bytes:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(0, (0, 0, 64, 32))
    return encode(image, "PNG", transparency=0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode(plain((0, 255, 255, 0), "CMYK"), "JPEG"), (255, 0, 0), id="cmyk-jpeg"),
        pytest.param(encode(plain((0, 255, 255, 0), "CMYK"), "TIFF"), (255, 0, 0), id="cmyk-tiff"),
        pytest.param(encode(plain((0, 0, 0, 255), "CMYK"), "JPEG"), (0, 0, 0), id="cmyk-black"),
        pytest.param(encode(plain(70, "L"), "PNG"), (70, 70, 70), id="grey"),
        pytest.param(encode(plain(1, "1"), "PNG"), (255, 255, 255), id="bilevel"),
        pytest.param(encode(plain((76, 85, 255), "YCbCr"), "TIFF"), (254, 0, 0), id="ycbcr"),
        pytest.param(
            encode(Image.fromarray(np.full((64, 64), 32768, np.uint16)), "PNG"),
            (128, 128, 128),
            id="grey16-png",
        ),
        pytest.param(
            encode(Image.fromarray(np.full((64, 64), 32768, np.uint16)), "TIFF"),
            (128, 128, 128),
            id="grey16-tiff",
        ),
        pytest.param(
            encode(plain(32768, "I;16B"), "TIFF"), (128, 128, 128), id="grey16-tiff-big-endian"
        ),
        pytest.param(png16(np.full((8, 8, 3), 32768)), (128, 128, 128), id="rgb16-png"),
        pytest.param(tiff16_rgb(np.full((8, 8, 3), 32768)), (128, 128, 128), id="rgb16-tiff"),
        pytest.param(
            png16(np.full((8, 8, 2), (0, 32768))), (127, 127, 127), id="grey16-half-transparent"
        ),
        pytest.param(
            png16(np.full((8, 8, 4), (65535, 0, 0, 0))), (255, 255, 255), id="rgba16-transparent"
        ),
        pytest.param(encode(plain(TRANSPARENT_RED, "RGBA"), "PNG"), (255, 255, 255), id="rgba-0"),
        pytest.param(encode(plain(HALF_RED, "RGBA"), "PNG"), (255, 127, 127), id="rgba-128"),
        pytest.param(
            encode(plain(HALF_RED, "RGBA"), "WEBP", lossless=True), (255, 127, 127), id="rgba-webp"
        ),
        pytest.param(encode(plain(HALF_RED, "RGBA"), "TIFF"), (255, 127, 127), id="rgba-tiff"),
        pytest.param(encode(plain((0, 128), "LA"), "PNG"), (127, 127, 127), id="la"),
        pytest.param(palette_with_transparency(), (255, 255, 255), id="palette-transparent"),
        pytest.param(
            encode(plain((9, 8, 7), "RGB"), "PNG", transparency=(9, 8, 7)),
            (255, 255, 255),
            id="rgb-transparent-colour",
        ),
        pytest.param(
            encode(plain(9, "L"), "PNG", transparency=9), (255, 255, 255), id="grey-transparent"
        ),
    ],
)
def test_each_mode_gives_its_colour_on_white(read, data, expected) -> None:
    decoded = read(data)
    assert decoded.image.mode == "RGB"
    assert decoded.notes == ()
    assert np.abs(np.subtract(decoded.image.getpixel((3, 3)), expected)).max() <= 1


def test_lab_red_is_red(read) -> None:
    """sRGB red is L* 54.3, a* 80.8, b* 69.9 (D50); Pillow stores L* x 2.55 and a*, b* + 128."""
    decoded = read(encode(plain((138, 209, 198), "LAB"), "TIFF"))
    assert np.abs(np.subtract(decoded.image.getpixel((3, 3)), (255, 0, 0))).max() <= 6


def test_the_opaque_part_of_a_palette_keeps_its_colour(read) -> None:
    assert read(palette_with_transparency()).image.getpixel((3, 60)) == (255, 0, 0)


def test_transparent_pixels_take_the_stated_background(read) -> None:
    decoded = read(encode(plain(HALF_RED, "RGBA"), "PNG"), background="#0000ff")
    assert decoded.image.getpixel((0, 0)) == (128, 0, 127)


def test_16_bit_grey_keeps_its_order_from_black_to_white(read) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256, 1).repeat(64, axis=0)
    levels = np.asarray(read(png16(ramp)).image)[0, :, 0]
    assert levels.tolist() == (ramp[0, :, 0] >> 8).tolist()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused_as_their_range_is_unknown(read, mode) -> None:
    with pytest.raises(DataError, match="32-bit pixels have no agreed range"):
        read(encode(plain(1, mode), "TIFF"))


# ---- colour profiles ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF", "HEIF"])
def test_wide_gamut_colours_are_converted_to_srgb(read, kind) -> None:
    """Adobe RGB (160, 120, 80) is sRGB (174.5, 120.8, 76.5) by the two standards' formulas."""
    adobe = (160, 120, 80)
    expected = adobe_to_srgb(adobe)
    assert np.allclose(expected, (174.5, 120.8, 76.5), atol=0.5)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100}
    options = {} if kind in ("PNG", "TIFF") else options
    data = encode(plain(adobe, "RGB"), kind, icc_profile=adobe_rgb_profile(), **options)
    decoded = read(data)
    assert decoded.notes == ()
    assert np.abs(np.subtract(decoded.image.getpixel((9, 9)), expected)).max() <= 3


def test_transparent_pixels_are_converted_before_blending(read) -> None:
    image = plain((160, 120, 80, 255), "RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 64, 32))
    decoded = read(encode(image, "PNG", icc_profile=adobe_rgb_profile()), background="#102030")
    assert decoded.image.getpixel((0, 0)) == (0x10, 0x20, 0x30)
    assert np.abs(np.subtract(decoded.image.getpixel((0, 60)), (174, 121, 77))).max() <= 1


def test_an_srgb_profile_moves_no_level_by_more_than_one(read) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decoded = read(encode(photo(1), "PNG", icc_profile=profile))
    difference = np.asarray(decoded.image, int) - np.asarray(photo(1), int)
    assert np.abs(difference).max() <= 1


def test_a_colour_profile_on_a_grey_picture_is_used(read) -> None:
    decoded = read(encode(plain(100, "L"), "PNG", icc_profile=adobe_rgb_profile()))
    assert decoded.notes == ()
    assert np.abs(np.subtract(decoded.image.getpixel((0, 0)), adobe_to_srgb((100,) * 3))).max() <= 1


@pytest.mark.parametrize(
    ("image", "profile"),
    [
        pytest.param(photo(1), b"no profile at all", id="garbage"),
        pytest.param(photo(1), adobe_rgb_profile()[:200], id="cut"),
        pytest.param(plain((0, 255, 255, 0), "CMYK"), adobe_rgb_profile(), id="of-other-channels"),
    ],
)
def test_an_unusable_profile_is_told_and_left_out(read, image, profile) -> None:
    decoded = read(encode(image, "TIFF", icc_profile=profile))
    assert decoded.notes == (messages.WARNED_PROFILE,)
    assert mean_difference(decoded.image, image.convert("RGB")) == 0


def test_the_pixels_carry_no_metadata_into_the_copy(read) -> None:
    data = encode(photo(1), "PNG", icc_profile=adobe_rgb_profile(), exif=exif_with_orientation(3))
    image = read(data).image
    assert image.info == {}
    assert b"iCCP" not in encode(image, "PNG")
    assert b"eXIf" not in encode(image, "PNG")


# ---- refusals -----------------------------------------------------------------------------------


def promised_tiff(size: tuple[int, int]) -> bytes:
    small = bytearray(encode(plain(7, "L", (9, 11)), "TIFF"))
    for old, new in zip((9, 11), size, strict=True):
        tag = {9: 256, 11: 257}[old].to_bytes(2, "little")
        at = small.index(tag, 8) + 8
        kind = int.from_bytes(small[at - 6 : at - 4], "little")
        small[at : at + 4] = new.to_bytes(4 if kind == 4 else 2, "little").ljust(4, b"\0")
    return bytes(small)


@pytest.mark.parametrize(
    ("data", "megapixels"),
    [
        (png((60_000, 60_000), b"\0" * 999), "3600.0"),
        (png((20_000, 6_000), b"\0" * 999), "120.0"),
        (promised_tiff((60_000, 60_000)), "3600.0"),
        (encode(plain(0, "1", (1001, 1000)), "PNG"), "1.0"),
    ],
)
def test_too_many_pixels_are_refused_by_the_header_alone(read, data, megapixels) -> None:
    with pytest.raises(DataError) as refusal:
        read(data)
    assert refusal.value.what == messages.REJECTED_PIXELS.format(megapixels=megapixels, allowed="1")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "HEIF"])
def test_a_cut_file_of_any_kind_is_called_truncated(read, kind, part) -> None:
    data = encode(photo(1), kind)
    with pytest.raises(DataError, match="truncated: the file ends before the picture does"):
        read(data[: int(len(data) * part)])


def test_the_reason_of_damaged_data_is_the_same_each_time(read) -> None:
    data = b"\xff\xd8\xff\xe0" + bytes(500)
    reasons = set()
    for _ in range(2):
        with pytest.raises(DataError) as refusal:
            read(data)
        reasons.add(refusal.value.what)
    assert reasons == {"cannot be decoded: the JPEG data are damaged (no picture is found in them)"}
