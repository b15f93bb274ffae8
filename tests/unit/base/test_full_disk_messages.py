"""A write to a full disk, as /dev/full answers it, becomes one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core import files
from dreambooth_core.errors import DataError, RegistryError, StageError
from dreambooth_core.pipeline.full_disk import DiskFullError, full_disk_explained
from dreambooth_core.workspace import Workspace

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")


def fill() -> None:
    with FULL.open("wb", buffering=0) as stream:
        stream.write(b"x")


def upload() -> None:
    try:
        fill()
    except OSError as error:
        raise RegistryError("MLflow failed") from error


def test_full_disk_is_named_with_the_file_and_its_free_space(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    places = Workspace(tmp_path).places("mug")
    with (
        pytest.raises(DiskFullError) as caught,
        full_disk_explained(places, "evaluate"),
        files.atomic_file(target),
    ):
        fill()
    assert caught.value.what == (
        f"the disk is full: evaluate of mug stopped while it wrote {target}"
    )
    disk = next(p for p in tmp_path.parents if p.is_mount())
    assert (caught.value.got or "").endswith(f"MiB are free on {disk}")
    assert "dreambooth clean" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_behind_another_error_is_found(tmp_path: Path) -> None:
    places = Workspace(tmp_path).places("mug")
    with pytest.raises(DiskFullError), full_disk_explained(places, "register"):
        upload()
    with pytest.raises(DiskFullError), full_disk_explained(places, "register"):
        raise StageError("`dvc commit` failed", got="ERROR: No space left on device")


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    places = Workspace(tmp_path).places("mug")
    with pytest.raises(DataError, match="no photo"), full_disk_explained(places, "validate"):
        raise DataError("no photo")
    with pytest.raises(FileNotFoundError), full_disk_explained(places, "validate"):
        (tmp_path / "missing").read_bytes()
