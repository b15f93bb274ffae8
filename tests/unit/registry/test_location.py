"""Workspaces that were moved or copied, with real stores and real files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dreambooth_core import files
from dreambooth_core.errors import RegistryError
from dreambooth_core.registry import runs, tracking, versions
from dreambooth_core.registry.tracking import Tracking, resolve_tracking
from dreambooth_core.workspace import Workspace
from tests.unit.registry import examples
from tests.unit.registry.examples import MODEL

REPAIR = "dreambooth doctor --repair"


def workspace(root: Path, empty_store: Path) -> Tracking:
    root.mkdir(parents=True)
    shutil.copy(empty_store, root / "mlflow.db")
    return resolve_tracking(Workspace(root))


def register(store: Tracking, export: Path, *, fingerprint: str = "1" * 64) -> None:
    run = runs.find_or_create_run(store, experiment=MODEL, fingerprint=fingerprint, name="full")
    candidate = examples.candidate(export, fingerprint=fingerprint)
    versions.register_version(store, run, candidate, scratch=store.home / "scratch")


@pytest.mark.parametrize("name", ["a b", "a%20b", "a#b", "a?b", "ünï-猫", "100%"])
def test_a_workspace_of_any_name_keeps_its_files_inside(
    tmp_path, empty_store, tiny_sd, name: str
) -> None:
    store = workspace(tmp_path / name, empty_store)
    register(store, tiny_sd)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    folder = versions.fetch(store, f"models:/{MODEL}/1")
    assert files.tree_hashes(folder) == files.tree_hashes(tiny_sd)


def test_moved_workspace_is_repaired_and_its_versions_load(tmp_path, empty_store, tiny_sd) -> None:
    register(workspace(tmp_path / "old", empty_store), tiny_sd)
    (tmp_path / "old").rename(tmp_path / "new place")
    store = resolve_tracking(Workspace(tmp_path / "new place"))
    with pytest.raises(RegistryError, match=REPAIR) as caught:
        versions.fetch(store, f"models:/{MODEL}/1")
    assert str(tmp_path / "old") in str(caught.value)
    assert tracking.move_here(store) == [str(tmp_path / "old" / "mlartifacts")]
    register(store, tiny_sd, fingerprint="2" * 64)
    for number in (1, 2):
        folder = versions.fetch(store, f"models:/{MODEL}/{number}")
        assert files.tree_hashes(folder) == files.tree_hashes(tiny_sd)
    assert not (tmp_path / "old").exists()
    assert tracking.move_here(store) == []


def test_a_copy_never_writes_into_the_original(tmp_path, empty_store, tiny_sd) -> None:
    original = workspace(tmp_path / "original", empty_store)
    register(original, tiny_sd)
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    before = files.tree_hashes(tmp_path / "original")
    copy = resolve_tracking(Workspace(tmp_path / "copy"))
    with pytest.raises(RegistryError, match=REPAIR):
        register(copy, tiny_sd, fingerprint="2" * 64)
    tracking.move_here(copy)
    register(copy, tiny_sd, fingerprint="2" * 64)
    assert files.tree_hashes(tmp_path / "original") == before
    assert len(versions.list_versions(copy, name=MODEL)) == 2
    assert len(versions.list_versions(original, name=MODEL)) == 1


def test_a_store_of_another_workspace_is_refused_and_not_changed(
    tmp_path, empty_store, tiny_sd
) -> None:
    original = workspace(tmp_path / "original", empty_store)
    register(original, tiny_sd)
    (tmp_path / "second").mkdir()
    second = resolve_tracking(Workspace(tmp_path / "second"), uri=original.uri)
    with pytest.raises(RegistryError, match=r"work in .*original") as caught:
        register(second, tiny_sd, fingerprint="2" * 64)
    assert REPAIR not in str(caught.value)
    with pytest.raises(RegistryError, match="belongs to another workspace"):
        tracking.move_here(second)
    register(original, tiny_sd, fingerprint="3" * 64)


def test_repair_without_the_files_changes_nothing(tmp_path, empty_store, tiny_sd) -> None:
    register(workspace(tmp_path / "original", empty_store), tiny_sd)
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "original" / "mlflow.db", tmp_path / "copy")
    copy = resolve_tracking(Workspace(tmp_path / "copy"))
    for _ in range(2):
        with pytest.raises(RegistryError, match=r"missing in this workspace.*cp -r"):
            tracking.move_here(copy)
