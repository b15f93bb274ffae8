"""`retrain-all` with one subject whose photos are gone and one with a broken link among them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dreambooth_core.workspace import Workspace
from tasks.changes import changed_subjects
from tests.flow import workspaces

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with three subjects, none of them trained."""
    root = tmp_path_factory.mktemp("workspace") / "checkout"
    return workspaces.build(root, subjects=("cat", "dog", "mug"))


def photos(workspace: Workspace, subject: str) -> Path:
    return workspace.root / "data" / "instance" / subject


def test_one_subject_without_photos_fails_alone_and_by_name(three: Workspace) -> None:
    shutil.rmtree(photos(three, "cat"))
    shutil.rmtree(three.root / ".dvc" / "cache")
    found = changed_subjects.fn(three.root, workspaces.environment(three.root))
    assert found.changed == ["dog", "mug"]
    assert list(found.failed) == ["cat"]
    assert "the photos of cat are missing" in found.failed["cat"]


def test_a_broken_link_among_the_photos_of_one_fails_that_one(three: Workspace) -> None:
    (photos(three, "dog") / "broken.png").symlink_to("nowhere.png")
    found = changed_subjects.fn(three.root, workspaces.environment(three.root))
    assert found.changed == ["mug"]
    assert sorted(found.failed) == ["cat", "dog"]
    assert "broken link" in found.failed["dog"]
