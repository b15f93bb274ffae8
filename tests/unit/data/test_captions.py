"""Captions: where they are read from, that they become prompts, and what is told about the rest."""

import json
from pathlib import Path

import pytest

from dreambooth_core import files
from dreambooth_core.config import DataSettings, load_settings
from dreambooth_core.data import gate
from dreambooth_core.data.captions import (
    METADATA,
    have_captions,
    read_captions,
    without_identifier,
    write_caption,
    writing,
)
from dreambooth_core.errors import DataError
from dreambooth_core.records import Manifest, ManifestImage
from tests import tiny_models
from tests.paths import PARAMS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.build_photos(tmp_path / "mug", count=3)


def settings(*, captions: bool = True) -> DataSettings:
    return load_settings(PARAMS).data.model_copy(update={"min_side": 64, "captions": captions})


def inspected(folder: Path, tmp_path: Path, *, captions: bool = True) -> gate.Inspection:
    return gate.inspect_folder(
        folder, settings(captions=captions), subject="mug", scratch=tmp_path / "scratch"
    )


def list_captions(folder: Path, *entries: tuple[str, str]) -> None:
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in entries]
    (folder / METADATA).write_text("\n".join(lines))


def test_captions_come_from_both_kinds_of_file_into_the_manifest(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "photo-0.txt").write_text("\ufeffa photo of\n  sks mug on a table\n")
    list_captions(folder, ("photo-2.png", "sks mug at night"))
    inspection = inspected(folder, tmp_path)
    manifest = gate.write_accepted(inspection, out=tmp_path / "out", fingerprint="f")
    assert [image.caption for image in manifest.images] == [
        "a photo of sks mug on a table", None, "sks mug at night",
    ]  # fmt: skip
    assert Manifest.read(tmp_path / "out") == manifest
    told = {each.name: each.reason for each in inspection.report.skipped}
    assert told == dict.fromkeys(["metadata.jsonl", "photo-0.txt"], gate.messages.CAPTION_READ)
    assert inspection.report.warnings == (
        "without a caption, so trained on the instance prompt: photo-1.png",
    )


def test_without_the_setting_captions_change_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "photo-0.txt").write_text("a caption")
    inspection = inspected(folder, tmp_path, captions=False)
    manifest = gate.write_accepted(inspection, out=tmp_path / "out", fingerprint="f")
    assert inspection.captions == (None, None, None)
    assert "caption" not in json.dumps(manifest.to_json())


def test_folder_without_captions_raises_with_the_fix(folder: Path, tmp_path: Path) -> None:
    (folder / "photo-0.txt").write_text("  \n")
    with pytest.raises(DataError, match=r"no photo of mug has a caption.*photo\.txt beside"):
        gate.require_captions(inspected(folder, tmp_path))


def test_conflicting_captions_raise_and_equal_ones_do_not(folder: Path) -> None:
    photos = sorted(folder.glob("*.png"))
    (folder / "photo-1.txt").write_text("sks mug")
    list_captions(folder, ("photo-1.png", "sks  mug"))
    assert read_captions(folder, photos).by_name == {"photo-1.png": "sks mug"}
    list_captions(folder, ("photo-1.png", "another mug"))
    with pytest.raises(DataError, match=r"photo-1\.png has two captions that differ"):
        read_captions(folder, photos)


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[]", '{"file_name": "a.png"}', '{"file_name": 1, "text": ""}'),
        *("[" * 100_000, '{"file_name": "a.png", "text": ' + "[" * 100_000),
        *('{"file_name": "\\ud800.png", "text": ""}', '{"file_name": "a.png", "text": "\\udfff"}'),
    ],
    ids=lambda line: line[:50],
)
def test_invalid_caption_line_raises_with_its_number(folder: Path, line: str) -> None:
    (folder / METADATA).write_text('{"file_name": "photo-0.png", "text": "x"}\n\n' + line)
    with pytest.raises(DataError, match=r"line 3 of metadata\.jsonl is not a caption"):
        read_captions(folder, sorted(folder.glob("*.png")))


def test_a_caption_of_no_photo_is_told(folder: Path) -> None:
    list_captions(folder, ("gone.png", "sks mug"))
    (warning,) = read_captions(folder, sorted(folder.glob("*.png"))).warnings
    assert warning == "a caption is for gone.png, which is no photo of this folder"


def test_a_link_that_leads_outside_is_not_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a secret")
    (folder / "photo-0.txt").symlink_to(tmp_path / "secret.txt")
    assert read_captions(folder, sorted(folder.glob("*.png"))).by_name == {}


def test_text_that_is_not_utf_8_is_refused(folder: Path) -> None:
    (folder / "photo-0.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"photo-0\.txt cannot be read"):
        read_captions(folder, sorted(folder.glob("*.png")))


def test_a_caption_that_does_not_name_the_subject_is_told() -> None:
    images = [
        ManifestImage(file="0.png", sha256="a", caption="a photo of SKS mug"),
        ManifestImage(file="1.png", sha256="b", caption="a mug"),
        ManifestImage(file="2.png", sha256="c"),
    ]
    (warning,) = without_identifier(images, "sks")
    assert warning.startswith("the caption of 1.png does not name the identifier 'sks'")


def test_written_caption_is_read_again_where_the_photo_has_one(photos: Path) -> None:
    names = sorted(path.name for path in photos.glob("*.png"))
    metadata = photos / METADATA
    metadata.write_text(json.dumps({"file_name": names[0], "text": "old"}) + "\n")
    for name in names[:2]:
        write_caption(photos, name, " sks mug\non grass ")
    assert not (photos / names[0]).with_suffix(".txt").exists()
    found = read_captions(photos, [photos / name for name in names])
    assert found.by_name == dict.fromkeys(names[:2], "sks mug on grass")
    for name in names[:2]:
        write_caption(photos, name, "  ")
    assert read_captions(photos, [photos / n for n in names]).by_name == {}


def test_captions_are_written_all_or_none(folder: Path) -> None:
    (folder / "photo-1.txt").write_text("mine")
    list_captions(folder, ("photo-2.png", "listed"))
    before = files.tree_hashes(folder)
    made = dict.fromkeys(["photo-0.png", "photo-1.png", "photo-2.png"], "sks mug in the snow")
    with pytest.raises(RuntimeError), writing(folder, made):
        raise RuntimeError
    assert files.tree_hashes(folder) == before
    (folder / "photo-9.txt").mkdir()
    with pytest.raises(OSError, match="directory"), writing(folder, {**made, "photo-9.png": "x"}):
        pass
    assert files.tree_hashes(folder) == before
    with writing(folder, made):
        pass
    assert read_captions(folder, sorted(folder.glob("*.png"))).by_name == made
    assert not (folder / "photo-2.txt").exists()


def test_photo_with_a_caption_or_a_link_is_told_from_others(folder: Path, tmp_path: Path) -> None:
    (folder / "photo-0.txt").write_text("mine")
    (tmp_path / "secret.txt").write_text("a secret")
    (folder / "photo-1.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "photo-2.txt").touch()
    names = sorted(path.name for path in folder.glob("*.png"))
    assert have_captions(folder, names) == set(names[:2])
