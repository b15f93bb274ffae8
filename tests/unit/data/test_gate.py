"""The gate's warnings, duplicates, errors and output."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageFilter

from dreambooth_core import files
from dreambooth_core.config import PriorSettings, load_settings
from dreambooth_core.data import messages
from dreambooth_core.data.duplicates import (
    ImageHashes,
    also_among,
    duplicates,
    hashes_of,
    read_hashes,
)
from dreambooth_core.data.gate import (
    Inspection,
    class_set_warnings,
    inspect_folder,
    require_usable,
    write_accepted,
)
from dreambooth_core.data.quality import (
    background_difference,
    edge_colours,
    sharpness,
    shrunk_grey,
)
from dreambooth_core.errors import DataError, Stopped
from dreambooth_core.records import GateReport, Manifest
from tests.unit.data.photo_files import ROOMY, encode, exif_with_orientation, photo
from tools.pocket.drawing import render
from tools.pocket.world import PLACES, Individual, Scene, draw_pose, generator

ROOT = Path(__file__).parents[3]


def put(folder: Path, pictures: dict[str, Image.Image]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (folder / name).write_bytes(encode(picture, "PNG"))
    return folder


def inspect(folder: Path, **settings: object) -> Inspection:
    changed = ROOMY.model_copy(update=settings)
    return inspect_folder(folder, changed, subject="mug", scratch=folder.parent / "scratch")


# ---- warnings -----------------------------------------------------------------------------------


def test_sharpness_does_not_depend_on_the_resolution() -> None:
    """Measured at a shorter side of 256 px: a 1024 px photo and its 512 px version agree to 15 %,
    though the variance of the Laplacian of the two files themselves differs 2.7 times."""
    large = photo(1, (1365, 1024)).filter(ImageFilter.GaussianBlur(2))
    half = large.resize((683, 512), Image.Resampling.LANCZOS)
    measured = [sharpness(shrunk_grey(image)) for image in (large, half)]
    plain = [sharpness(image.convert("L")) for image in (large, half)]
    assert measured[0] == pytest.approx(measured[1], rel=0.15)
    assert plain[1] > 2.5 * plain[0]


def test_sharpness_of_one_bright_pixel_is_worked_out_by_hand() -> None:
    """5 x 5 levels, 9 in the middle: the Laplacian is -36 once, 9 four times, 0 four times; mean 0,
    so the variance is (36^2 + 4 x 9^2) / 9 = 180."""
    levels = np.zeros((5, 5), np.uint8)
    levels[2, 2] = 9
    assert sharpness(Image.fromarray(levels)) == pytest.approx(180.0)


def test_an_out_of_focus_photo_is_warned_of_and_accepted(tmp_path: Path) -> None:
    blurred = photo(1, (512, 384)).filter(ImageFilter.GaussianBlur(6))
    report = inspect(put(tmp_path / "photos", {"a.png": blurred, "b.png": photo(2)})).report
    warnings = {each.name: each.warnings for each in report.accepted}
    assert warnings["b.png"] == ()
    assert len(warnings["a.png"]) == 1
    assert warnings["a.png"][0].startswith("looks blurry: sharpness ")


def test_a_panorama_is_warned_of_beyond_the_allowed_ratio_only(tmp_path: Path) -> None:
    pictures = {"at.png": photo(1, (250, 100)), "beyond.png": photo(2, (100, 260))}
    report = inspect(put(tmp_path / "photos", pictures)).report
    assert [each.warnings for each in report.accepted] == [
        (),
        (messages.WARNED_ASPECT.format(ratio="2.6", allowed="2.5"),),
    ]


def test_a_photo_smaller_than_the_training_images_is_warned_of(tmp_path: Path) -> None:
    report = inspect(put(tmp_path / "photos", {"a.png": photo(1)}), resolution=512).report
    assert report.accepted[0].warnings == (
        "its shorter side has 120 px and is enlarged to 512 px for training (data.resolution)",
    )


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (2, ("2 photo(s) accepted: at least 3 are advised",)),
        (3, ()),
        (5, ()),
        (6, ("6 photos accepted: at most 5 are advised",)),
    ],
)
def test_too_few_and_too_many_photos_are_warned_of(tmp_path, count, expected) -> None:
    folder = put(tmp_path / "photos", {f"{i}.png": photo(i) for i in range(count)})
    warnings = inspect(folder, max_photos=5).report.warnings
    assert len(warnings) == len(expected)
    assert all(found.startswith(each) for found, each in zip(warnings, expected, strict=True))


def test_photos_that_were_turned_are_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "photos", {"a.png": photo(1), "b.png": photo(2)})
    (folder / "c.jpg").write_bytes(encode(photo(3), "JPEG", exif=exif_with_orientation(6)))
    report = inspect(folder).report
    assert report.warnings == ("turned upright, as their EXIF orientation says: c.jpg",)
    assert [(each.width, each.height) for each in report.accepted][2] == (120, 160)


def in_place(place: str, number: int) -> Image.Image:
    """A drawing of one mug, in another pose and with another backdrop for each number."""
    rng = generator(number, stream="test-gate", index=0)
    scene = Scene(
        individual=Individual(thing="mug", colour="red"),
        place=place,
        pose=draw_pose(rng),
        backdrop=int(rng.integers(2**31)),
    )
    return render(scene, size=128)[0]


@pytest.mark.parametrize("place", PLACES)
def test_photos_of_one_place_are_warned_of(tmp_path: Path, place: str) -> None:
    folder = put(tmp_path / "photos", {f"{n}.png": in_place(place, n) for n in range(4)})
    (warning,) = inspect(folder, near_duplicate_distance=0).report.warnings
    assert warning.startswith("all 4 photos seem to show the same background")


@pytest.mark.parametrize(("one", "other"), itertools.combinations(PLACES, 2))
def test_one_photo_from_elsewhere_suffices(tmp_path: Path, one: str, other: str) -> None:
    pictures = {f"{n}.png": in_place(one, n) for n in range(3)}
    folder = put(tmp_path / "photos", {**pictures, "elsewhere.png": in_place(other, 3)})
    assert inspect(folder, near_duplicate_distance=0).report.warnings == ()


def test_a_single_photo_has_no_shared_background(tmp_path: Path) -> None:
    report = inspect(put(tmp_path / "photos", {"a.png": photo(1)}), min_photos=1).report
    assert report.warnings == ()


def test_background_difference_is_worked_out_by_hand() -> None:
    """White has L* 100 and black 0, both a* = b* = 0: the mean over three channels is 100 / 3."""
    edges = [edge_colours(Image.new("RGB", (50, 70), name)) for name in ("white", "black")]
    assert background_difference(edges) == pytest.approx(100 / 3, abs=0.2)


# ---- duplicates ---------------------------------------------------------------------------------


def hashes(name: str, bits: int, num_pixels: int = 100) -> ImageHashes:
    hash_bits = np.array([bits >> i & 1 for i in range(64)], dtype=bool).reshape(8, 8)
    return ImageHashes(name, num_pixels, f"pixels of {name}", imagehash.ImageHash(hash_bits))


A, B, C = hashes("a", 0b0), hashes("b", 0b1111), hashes("c", 0b11111111)


@pytest.mark.parametrize("photos", [[A, B, C], [C, B, A], [B, A, C], [B, C, A]])
def test_both_ends_of_a_chain_of_duplicates_stay(photos: list[ImageHashes]) -> None:
    """a and b differ in 4 bits, b and c in 4, a and c in 8."""
    assert list(duplicates(photos, distance=4)) == ["b"]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_largest_photo_stays_and_removes_its_near_duplicates(order: int) -> None:
    photos = [A, hashes("b", 0b1111, num_pixels=101), C]
    rejected = duplicates(photos[order:] + photos[:order], distance=4)
    assert sorted(rejected) == ["a", "c"]
    assert rejected["a"] == messages.REJECTED_NEAR.format(other="b", distance=4, allowed=4)


def test_one_bit_beyond_the_distance_is_another_picture() -> None:
    assert duplicates([A, B], distance=3) == {}
    assert list(duplicates([A, B], distance=4)) == ["b"]


def test_a_rejected_photo_rejects_no_other(tmp_path: Path) -> None:
    """The blank one has the most pixels, and yet it is not the one that stays."""
    pictures = {"blank.png": Image.new("RGB", (900, 900), "grey"), "a.png": photo(1)}
    report = inspect(put(tmp_path / "photos", pictures), near_duplicate_distance=64).report
    assert [each.name for each in report.accepted] == ["a.png"]


# ---- class images -------------------------------------------------------------------------------


def prior(num_class_images: int) -> PriorSettings:
    settings = load_settings(ROOT / "params.yaml").prior
    assert settings is not None
    return settings.model_copy(update={"num_class_images": num_class_images})


def test_fewer_class_images_than_the_advice_are_warned_of() -> None:
    assert class_set_warnings(prior(199))[0].startswith(
        "199 class images: 200 to 300 work for most subjects"
    )
    assert class_set_warnings(prior(200)) == ()
    assert class_set_warnings(None) == ()


def test_resized_instance_photo_is_found_among_class_images(tmp_path: Path) -> None:
    folder = put(tmp_path / "class", {"0.png": photo(5), "1.png": photo(1).resize((64, 48))})
    class_images = read_hashes({name: folder / name for name in ("0.png", "1.png")})
    photos = [hashes_of(photo(seed), name=f"photo-{seed}") for seed in (1, 2)]
    assert also_among(photos, class_images, distance=4) == (
        messages.CLASS_AMONG.format(photo="photo-1", other="1.png"),
    )
    assert also_among(photos, [], distance=4) == ()


# ---- errors and output --------------------------------------------------------------------------


def test_a_folder_that_cannot_be_used_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    for name, what in {
        "missing": "the folder of mug's instance photos does not exist",
        "file": "mug's instance_dir is not a folder",
        "empty": "the folder of mug's instance photos is empty",
    }.items():
        with pytest.raises(DataError) as refusal:
            inspect(tmp_path / name)
        assert refusal.value.what == what
        assert refusal.value.got == str(tmp_path / name)
        assert "subjects.mug.instance_dir in params.yaml" in str(refusal.value)
        assert refusal.value.exit_code == 2


def test_folder_without_usable_photos_gives_report_then_error(tmp_path: Path) -> None:
    folder = put(tmp_path / "photos", {f"{i}.png": photo(i, (9, 9)) for i in range(7)})
    inspection = inspect(folder)
    assert len(inspection.report.rejected) == 7
    for refuse in (
        lambda: require_usable(inspection.report),
        lambda: write_accepted(inspection, out=tmp_path / "out", fingerprint="f"),
    ):
        with pytest.raises(
            DataError, match=r"no photo of mug can be used.*0\.png: too small.*2 more"
        ):
            refuse()
    assert not (tmp_path / "out").exists()


def test_a_stop_is_heeded_between_photos(tmp_path: Path) -> None:
    folder = put(tmp_path / "photos", {f"{i}.png": photo(i) for i in range(4)})
    seen: list[tuple[int, int, str]] = []
    with pytest.raises(Stopped):
        inspect_folder(
            folder,
            ROOMY,
            subject="mug",
            scratch=tmp_path / "scratch",
            progress=lambda done, total, text="": seen.append((done, total, text)),
            should_stop=lambda: len(seen) == 2,
        )
    assert seen == [(1, 4, "0.png"), (2, 4, "1.png")]


def test_published_images_are_the_accepted_pixels_in_order(
    tmp_path: Path,
) -> None:
    folder = put(tmp_path / "photos", {"b.png": photo(2), "a.png": photo(1), "c.png": photo(2)})
    inspection = inspect(folder)
    out = tmp_path / "out"
    manifest = write_accepted(inspection, out=out, fingerprint="abc")
    assert manifest == Manifest.read(out)
    assert GateReport.read(out, "report.json") == inspection.report
    assert [each.name for each in inspection.report.accepted] == ["a.png", "b.png"]
    assert [each.file for each in manifest.images] == ["images/000.png", "images/001.png"]
    assert files.mismatches(out, {each.file: each.sha256 for each in manifest.images}) == []
    for image, seed in zip(manifest.images, (1, 2), strict=True):
        with Image.open(out / image.file) as copy:
            assert np.array_equal(np.asarray(copy), np.asarray(photo(seed)))
    assert inspection.report.accepted[0].sha256 == files.sha256_file(folder / "a.png")


def test_the_published_schema_is_that_of_the_report() -> None:
    published = json.loads((ROOT / "docs/schemas/gate-report.schema.json").read_text())
    assert published == GateReport.model_json_schema()


def test_the_guide_lists_every_sentence_of_the_gate() -> None:
    guide = (ROOT / "docs/how-to-photos.md").read_text()
    sentences = {
        name: value
        for name, value in vars(messages).items()
        if name.isupper()
        and name.split("_")[0] in ("SKIPPED", "REJECTED", "WARNED", "REPORT", "CLASS")
    }
    assert len(sentences) == 38
    assert [name for name, sentence in sentences.items() if f"`{sentence}`" not in guide] == []


# ---- real photographs ---------------------------------------------------------------------------

PHOTOS = os.environ.get("DREAMBOOTH_PHOTOS")


@pytest.mark.skipif(not PHOTOS, reason="DREAMBOOTH_PHOTOS names no folder of subjects' folders")
def test_dreambooth_dataset_has_two_subjects_in_one_place(tmp_path: Path) -> None:
    """107 photos of 20 subjects, accepted without further warnings. The closest two photos of a
    subject (dog6/01, 02) differ in 12 of 64 bits; the least sharp photo (clock/00) has 152."""
    settings = load_settings(ROOT / "params.yaml").data
    subjects = sorted(path for path in Path(str(PHOTOS)).iterdir() if path.is_dir())
    accepted, in_one_place = [], []
    for folder in subjects:
        report = inspect_folder(
            folder, settings, subject=folder.name, scratch=tmp_path / folder.name
        ).report
        assert (report.rejected, report.skipped) == ((), ())
        if report.warnings:
            in_one_place.append(folder.name)
        assert all(each.warnings == () for each in report.accepted)
        accepted += report.accepted
    assert (len(subjects), len(accepted)) == (20, 107)
    assert in_one_place == ["berry_bowl", "cat"]
