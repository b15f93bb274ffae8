"""`retrain-all` with one subject whose photos are gone and one with a broken link among them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from dreambooth_core.errors import StageError
from dreambooth_core.records import ModelVersion
from dreambooth_core.workspace import Workspace
from flows.retrain_all import retrain_all
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


def test_flow_trains_the_others_and_its_end_state_names_the_failed(
    three: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in workspaces.environment(three.root).items():
        monkeypatch.setenv(name, value)
    with prefect_test_harness(server_startup_timeout=300):
        state = retrain_all(str(three.root), return_state=True)
    assert state.is_failed()
    assert str(state.message).count("failed") >= 1
    with pytest.raises(StageError, match=r"2 of 3 subjects failed.*cat: .*; dog: ") as caught:
        state.result()
    assert "mug: " not in str(caught.value)
    assert ModelVersion.read(three.stage_dir("mug", "register")).name == "dreambooth-mug"
