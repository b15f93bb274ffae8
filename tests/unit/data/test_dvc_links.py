"""Photos that DVC keeps as links into its cache (`cache.type symlink`), with the real DVC."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.data import messages
from dreambooth_core.data.listing import list_folder
from dreambooth_core.pipeline import dvc_cache
from tests.unit.data.photo_files import photo


def dvc(root: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, check=True, capture_output=True)


@pytest.mark.parametrize("cache", [None, "../shared cache"])
def test_links_into_dvcs_cache_are_the_photos_and_others_stay_refused(
    tmp_path: Path, cache: str | None
) -> None:
    root, photos = tmp_path / "project", tmp_path / "project" / "mug"
    photos.mkdir(parents=True)
    for number in (1, 2):
        photo(number).save(photos / f"{number}.png")
    dvc(root, "init", "--quiet", "--no-scm")
    dvc(root, "config", "cache.type", "symlink")
    if cache:
        dvc(root, "cache", "dir", cache)
    dvc(root, "add", "--quiet", "mug")
    photo(3).save(tmp_path / "outside.png")
    (photos / "stray.png").symlink_to(tmp_path / "outside.png")
    assert (photos / "1.png").is_symlink()
    found = list_folder(photos, subject="mug", cache=lambda: dvc_cache.folder_of(root))
    assert [path.name for path in found.photos] == ["1.png", "2.png"]
    assert [(each.name, each.reason) for each in found.skipped] == [
        ("stray.png", messages.SKIPPED_LINK_OUTSIDE)
    ]
    without = list_folder(photos, subject="mug", cache=lambda: dvc_cache.folder_of(tmp_path))
    assert without.photos == ()
