"""Masks: where they are read from, how they weight the loss, and what the gate says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core import files
from dreambooth_core.config import DataSettings
from dreambooth_core.data import gate, masks, messages
from dreambooth_core.data.loss_weights import WEIGHTS_FILE, LossWeights, normalised
from dreambooth_core.errors import CorruptRecordError, DataError
from dreambooth_core.models.tensors import read_tensors
from dreambooth_core.records import ImageMask, Manifest, ManifestImage
from tests.unit.data.photo_files import ROOMY, encode, exif_with_orientation, photo

SIZE = (160, 120)


def left_half(size: tuple[int, int] = SIZE) -> Image.Image:
    """White on the left, black on the right."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def with_alpha(picture: Image.Image, mask: Image.Image) -> Image.Image:
    cut_out = picture.convert("RGBA")
    cut_out.putalpha(mask)
    return cut_out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos: a and b without alpha, c with the left half opaque."""
    folder = tmp_path / "photos"
    (folder / "masks").mkdir(parents=True)
    for seed, name in enumerate(("a", "b")):
        (folder / f"{name}.jpg").write_bytes(encode(photo(seed, SIZE), "JPEG"))
    (folder / "c.png").write_bytes(encode(with_alpha(photo(2, SIZE), left_half()), "PNG"))
    return folder


def put_mask(folder: Path, name: str, mask: Image.Image) -> None:
    (folder / "masks" / name).write_bytes(encode(mask, "PNG"))


def inspect(folder: Path, *, masks: str | None = "files") -> gate.Inspection:
    settings = ROOMY.model_copy(update={"masks": masks})
    scratch = folder.parent / "scratch"
    return gate.inspect_folder(folder, settings, subject="mug", scratch=scratch)


def published(inspection: gate.Inspection, out: Path) -> list[np.ndarray | None]:
    """The masks of the manifest, as pixels."""
    manifest = gate.write_accepted(inspection, out=out, fingerprint="f")
    assert Manifest.read(out) == manifest
    for image in manifest.images:
        assert image.mask is None or files.sha256_file(out / image.mask.file) == image.mask.sha256
    return [
        None if image.mask is None else np.asarray(Image.open(out / image.mask.file))
        for image in manifest.images
    ]


# ---- the gate -----------------------------------------------------------------------------------


def test_masks_come_from_files_and_alpha(folder: Path, tmp_path: Path) -> None:
    put_mask(folder, "a.png", left_half())
    inspection = inspect(folder)
    a, b, c = published(inspection, tmp_path / "out")
    assert b is None
    for mask in (a, c):
        assert mask is not None
        assert np.array_equal(mask, np.asarray(left_half()))
    assert inspection.report.warnings == (messages.MASK_MISSING.format(names="b.jpg"),)
    (skipped,) = inspection.report.skipped
    assert (skipped.name, skipped.reason) == ("masks", messages.MASK_READ)


def test_a_cut_out_in_the_mask_folder_masks_by_its_alpha(folder: Path, tmp_path: Path) -> None:
    put_mask(folder, "a.png", with_alpha(Image.new("RGB", SIZE, "black"), left_half()))
    a, _, _ = published(inspect(folder), tmp_path / "out")
    assert a is not None
    assert np.array_equal(a, np.asarray(left_half()))


def test_a_mask_has_the_orientation_of_the_upright_photo(folder: Path, tmp_path: Path) -> None:
    """EXIF 6 turns 160 x 120 px into 120 x 160 px; so must the photo's own alpha."""
    turned = encode(with_alpha(photo(5, SIZE), left_half()), "PNG", exif=exif_with_orientation(6))
    (folder / "c.png").write_bytes(turned)
    _, _, c = published(inspect(folder), tmp_path / "out")
    upright = left_half().transpose(Image.Transpose.ROTATE_270)
    assert c is not None
    assert np.array_equal(c, np.asarray(upright))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (
            encode(left_half((80, 60)), "PNG"),
            "its mask has another size: 80 x 60 px, but the photo",
        ),
        (encode(Image.new("L", SIZE, 0), "PNG"), messages.REJECTED_MASK_EMPTY),
        (b"\x89PNG\r\n\x1a\n", "its mask masks/a.png cannot be decoded"),
    ],
)
def test_a_photo_with_a_wrong_mask_is_rejected(folder: Path, mask: bytes, reason: str) -> None:
    (folder / "masks" / "a.png").write_bytes(mask)
    report = inspect(folder).report
    (rejected,) = report.rejected
    assert rejected.name == "a.jpg"
    assert rejected.reason.startswith(reason)


def test_masks_of_nothing_and_other_files_are_told(folder: Path) -> None:
    put_mask(folder, "z.png", left_half())
    (folder / "masks" / "notes.txt").write_text("which masks to draw next\n")
    warnings = inspect(folder).report.warnings
    assert messages.MASK_OF_NOTHING.format(name="masks/z.png") in warnings
    told = messages.MASK_SKIPPED.format(name="masks/notes.txt", reason=messages.SKIPPED_OTHER)
    assert told in warnings


def test_mask_that_links_out_of_the_folder_is_not_read(folder: Path, tmp_path: Path) -> None:
    put_mask(folder, "a.png", left_half())
    outside = (folder / "masks" / "a.png").rename(tmp_path / "elsewhere.png")
    (folder / "masks" / "a.png").symlink_to(outside)
    inspection = inspect(folder)
    assert inspection.masks[0] is None
    told = messages.MASK_SKIPPED.format(name="masks/a.png", reason=messages.SKIPPED_LINK_OUTSIDE)
    assert told in inspection.report.warnings


def test_without_the_setting_masks_change_nothing(folder: Path, tmp_path: Path) -> None:
    put_mask(folder, "a.png", left_half())
    inspection = inspect(folder, masks=None)
    assert published(inspection, tmp_path / "out") == [None, None, None]
    assert "mask" not in json.dumps(Manifest.read(tmp_path / "out").to_json())
    (skipped,) = inspection.report.skipped
    assert skipped.reason == messages.MASK_UNREAD


def test_a_folder_without_masks_raises_with_the_fix(folder: Path) -> None:
    (folder / "c.png").unlink()
    with pytest.raises(DataError, match=r"no photo of mug has a mask.*masks/photo\.png"):
        gate.require_masks(inspect(folder))


def test_masks_replace_the_warning_about_a_shared_background(folder: Path) -> None:
    """The same gradient around three different centres."""
    for seed, name in enumerate(("a.jpg", "b.jpg", "c.png")):
        picture = Image.linear_gradient("L").resize(SIZE).convert("RGB")
        picture.paste(photo(seed, (80, 60)), (40, 30))
        (folder / name).write_bytes(encode(picture, "PNG"))
    (shared,) = inspect(folder, masks=None).report.warnings
    assert shared.startswith("all 3 photos seem to show the same background")
    assert inspect(folder, masks="auto").report.warnings == ()


# ---- weights of the loss ------------------------------------------------------------------------


def test_weights_have_mean_one_in_each_view_by_hand() -> None:
    """A quarter of the positions: each counts four times. An empty view counts nothing."""
    quarter = torch.zeros(8, 8)
    quarter[:4, :4] = 1
    weights = normalised(torch.stack([quarter, torch.zeros(8, 8), torch.ones(8, 8)]))
    assert weights[0].unique().tolist() == [0.0, 4.0]
    assert weights.mean((1, 2)).tolist() == [1.0, 0.0, 1.0]


SETTINGS = DataSettings.model_validate(
    {**ROOMY.model_dump(), "center_crop": True, "random_flip": True, "masks": "files"}
)


def entry_with_mask(folder: Path) -> ManifestImage:
    (folder / "masks").mkdir(parents=True)
    left_half().save(folder / "masks" / "000.png")
    mask = ImageMask(file="masks/000.png", sha256=files.sha256_file(folder / "masks" / "000.png"))
    return ManifestImage(file="images/000.png", sha256="a" * 64, mask=mask)


MOMENTS = {"mean": torch.zeros(2, 4, 8, 8), "size": torch.zeros(2, 4)}


def test_file_weights_are_cut_like_the_photo(tmp_path: Path) -> None:
    """160 x 120 px scaled to 85 x 64 and cropped in the middle: the edge at 42.5 px lies at 32 of
    64 px, so the left half counts twice, and in the mirrored view the right half."""
    entry = entry_with_mask(tmp_path)
    weights = LossWeights(SETTINGS, None)
    weights.add(tmp_path, entry, MOMENTS)
    assert list(weights.write(tmp_path)) == [WEIGHTS_FILE]
    plain, mirrored = read_tensors(tmp_path / WEIGHTS_FILE)[entry.file]
    torch.testing.assert_close(plain[:, :3], torch.full((8, 3), 2.0), atol=0.05, rtol=0)
    assert plain[:, 5:].abs().max() == 0
    assert torch.equal(mirrored, plain.flip(1))


def test_a_changed_mask_raises(tmp_path: Path) -> None:
    entry = entry_with_mask(tmp_path)
    Image.new("L", SIZE, 255).save(tmp_path / "masks" / "000.png")
    with pytest.raises(CorruptRecordError, match="differs from the mask in its manifest"):
        LossWeights(SETTINGS, None).add(tmp_path, entry, MOMENTS)


def test_photos_without_masks_write_no_weights(tmp_path: Path) -> None:
    weights = LossWeights(SETTINGS, None)
    weights.add(tmp_path, ManifestImage(file="images/000.png", sha256="a" * 64), MOMENTS)
    assert weights.write(tmp_path) == {}
    assert not (tmp_path / WEIGHTS_FILE).exists()


@pytest.mark.parametrize(
    ("present", "read"),
    [
        ((), "a.png"),
        (("a.jpg",), "a.jpg"),
        (("a.jpg", "a.webp", "a.png"), "a.webp"),
        (("a.txt", ".a.png"), "a.png"),
    ],
)
def test_new_mask_replaces_the_one_that_is_read(
    folder: Path, present: tuple[str, ...], read: str
) -> None:
    for name in present:
        (folder / "masks" / name).write_bytes(
            b"words" if name.endswith("txt") else encode(left_half(), "PNG")
        )
    target = masks.own_file(folder, "a.jpg")
    assert target == folder / "masks" / read
    target.write_bytes(encode(Image.new("L", SIZE, 255), "PNG"))
    mask = inspect(folder).masks[0]
    assert mask is not None
    assert np.asarray(Image.open(mask)).min() == 255
