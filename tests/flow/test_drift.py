"""A stage whose inputs changed while it ran is not recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.errors import StageError
from dreambooth_core.workspace import Workspace
from tasks.inputs import inputs_now, refuse_drift
from tasks.run import subject_run
from tasks.stage_guard import bring_up_to_date
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

PHOTOS = f"data/instance/{SUBJECT}"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which no stage has run; no test changes it."""
    return workspaces.build(tmp_path_factory.mktemp("workspace") / "checkout")


@pytest.fixture
def workspace(untouched: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(shutil.copytree(untouched.root, tmp_path / "w", copy_function=shutil.copy2))


def photo(root: Path) -> Path:
    return min(path for path in (root / PHOTOS).iterdir() if path.is_file())


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def move_photo(root: Path) -> None:
    photo(root).rename(root / PHOTOS / "sub" / photo(root).name)


def rewrite_record(root: Path) -> None:
    (root / f"work/{SUBJECT}/validate/record.json").write_text("{}")


# The stage that runs, the dependency that the error names, and what happens to it.
CHANGES: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "a photo changes": ("validate", PHOTOS, lambda root: flip_a_bit(photo(root))),
    "a photo is added": (
        "validate", PHOTOS, lambda root: shutil.copy(photo(root), root / PHOTOS / "new.png")
    ),
    "a photo is removed": ("validate", PHOTOS, lambda root: photo(root).unlink()),
    "a photo moves to a folder": ("validate", PHOTOS, move_photo),
    "the base model's weights change": (
        "class-images",
        "assets/pocket-sd",
        lambda root: flip_a_bit(next((root / "assets/pocket-sd/unet").glob("*.safetensors"))),
    ),
    "an earlier stage publishes again": ("cache", f"work/{SUBJECT}/validate", rewrite_record),
    "a launch file changes": (
        "train", "infra/accelerate", lambda root: flip_a_bit(root / "infra/accelerate/one-gpu.yaml")
    ),
}  # fmt: skip


@pytest.mark.parametrize(("stage", "named", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_changed_dependency_is_refused_by_name(
    stage: str, named: str, change: Callable[[Path], object], workspace: Workspace
) -> None:
    (workspace.root / PHOTOS / "sub").mkdir()
    (workspace.root / f"work/{SUBJECT}/validate").mkdir(parents=True)
    (workspace.root / f"work/{SUBJECT}/validate/record.json").write_text('{"a": 1}')
    settings = config.load_view(workspace, SUBJECT)
    before = inputs_now(workspace, settings, stage)
    refuse_drift(stage, before, inputs_now(workspace, settings, stage))
    change(workspace.root)
    with pytest.raises(StageError, match=f"of {stage} changed while it ran.*found: {named};"):
        refuse_drift(stage, before, inputs_now(workspace, settings, stage))


def test_photo_changed_during_the_gate_is_never_recorded(workspace: Workspace) -> None:
    with (
        subject_run(SUBJECT, workspace.root, workspaces.environment(workspace.root)) as run,
        pytest.raises(StageError, match=PHOTOS),
    ):
        bring_up_to_date(run, "validate", lambda: flip_a_bit(photo(workspace.root)))
    assert not (workspace.root / "dvc.lock").exists()
