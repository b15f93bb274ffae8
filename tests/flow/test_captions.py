"""`dreambooth subject caption`: the place in words, nothing overwritten, all or nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli import captions
from dreambooth_core import config, files
from dreambooth_core.data.captions import read_captions
from dreambooth_core.errors import DreamBoothError, SettingsError
from dreambooth_core.pipeline import StageContext, captioning, run_stage
from dreambooth_core.records import Manifest
from dreambooth_core.workspace import Workspace
from tests import tiny_models
from tests.flow import workspaces

pytestmark = pytest.mark.slow

SEEN = {
    f"0{number}.png": f"a photo of sks mug {place}"
    for number, place in enumerate(
        ("in a room", "on the beach", "on the grass", "in the city", "in the snow"), start=1
    )
}
"""What a person sees in the photos of the example."""
OWN = "sks mug on my desk"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A project with the shipped models and the photos of an example."""
    return workspaces.with_cup(tmp_path / "project")


def found(workspace: Workspace) -> dict[str, str]:
    folder = workspaces.cup_photos(workspace)
    return read_captions(folder, sorted(folder.glob("*.png"))).by_name


def command(workspace: Workspace, *options: str) -> subprocess.CompletedProcess[str]:
    words = ("-m", "cli", "subject", "caption", "cup", *options)
    return workspaces.run_in(workspace.root, sys.executable, *words, check=False)


def is_tracked(workspace: Workspace) -> bool:
    """Whether DVC knows the folder of photos as it is."""
    return workspaces.dvc_of(workspace).status(["data/instance/cup.dvc"]) == {}


def test_captions_name_the_place_and_stages_use_them(workspace: Workspace) -> None:
    tried = command(workspace, "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert SEEN["02.png"] in tried.stdout
    assert "nothing is written" in tried.stdout
    assert found(workspace) == {}

    (workspaces.cup_photos(workspace) / "03.txt").write_text(OWN)
    done = command(workspace, "--use", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    expected = {**SEEN, "03.png": OWN}
    assert {row["photo"]: row["caption"] for row in made["captions"]} == expected
    assert [row["state"] for row in made["captions"]] == ["new", "new", "kept", "new", "new"]
    assert found(workspace) == expected
    assert is_tracked(workspace)
    assert config.load_settings(workspace.params).subjects["cup"].overrides == {
        "data": {"captions": True}
    }
    assert not config.load_settings(workspace.params).data.captions
    view = config.load_view(workspace, "cup")
    run_stage(StageContext(view, workspace.places("cup")), "validate")
    manifest = Manifest.read(workspace.stage_dir("cup", "validate"))
    assert [image.caption for image in manifest.images] == list(expected.values())

    again = command(workspace)
    assert "captions written: 0" in again.stdout
    assert found(workspace) == expected
    assert "captions written: 5" in command(workspace, "--replace").stdout
    assert found(workspace) == SEEN


def test_error_while_writing_leaves_everything_as_it_was(workspace: Workspace) -> None:
    (workspaces.cup_photos(workspace) / "03.txt").write_text(OWN)
    before = files.tree_hashes(workspaces.cup_photos(workspace))
    shutil.move(workspace.root / ".dvc" / "config", workspace.root / "elsewhere")
    (workspace.root / ".dvc" / "config").mkdir()
    options = {"model": None, "replace": True, "dry_run": False}
    with pytest.raises(DreamBoothError, match="dvc add"):
        captions.caption(workspace, "cup", workspaces.dvc_of(workspace), **options)
    assert files.tree_hashes(workspaces.cup_photos(workspace)) == before


def test_caption_written_during_the_captioners_work_stays(workspace: Workspace) -> None:
    view = config.load_view(workspace, "cup")
    _, suggested = captioning.suggest(view, workspace.places("cup"))
    assert suggested == SEEN
    (workspaces.cup_photos(workspace) / "03.txt").write_text(OWN)
    written = captions._write(
        workspace, view, workspaces.dvc_of(workspace), suggested, replace=False
    )
    assert sorted(written) == sorted(set(SEEN) - {"03.png"})
    assert found(workspace)["03.png"] == OWN


def test_photos_that_share_a_file_get_one_caption(workspace: Workspace) -> None:
    folder = workspaces.cup_photos(workspace)
    (folder / "02.png").rename(folder / "01.PNG")
    _, suggested = captioning.suggest(config.load_view(workspace, "cup"), workspace.places("cup"))
    assert suggested["01.png"] == suggested["01.PNG"]
    assert suggested["03.png"] == SEEN["03.png"]


def test_captioner_completes_the_prompt_of_the_subject(
    workspace: Workspace, tmp_path: Path
) -> None:
    blip = tiny_models.build_tiny_blip(tmp_path / "blip")
    view = config.load_view(workspace, "cup")
    _, suggested = captioning.suggest(view, workspace.places("cup"), model=str(blip))
    assert list(suggested) == list(SEEN)
    assert all(text.startswith("a photo of sks mug ") for text in suggested.values())
    assert all(len(text.split()) > 8 for text in suggested.values())  # random words


def test_captioner_that_is_not_available_is_one_sentence(workspace: Workspace) -> None:
    (workspaces.cup_photos(workspace) / "03.txt").write_text(OWN)
    for model, said in (
        ("nobody/none", "nor available from the hub"),
        ("assets/pocket-sd", r"it has no config.json"),
    ):
        done = command(workspace, "--model", model, "--use")
        assert done.returncode == SettingsError.exit_code
        assert done.stderr.startswith(f"error: the captioner cannot be used; found: {model}: ")
        assert said in done.stderr
        assert "write the captions yourself: photo.txt next to photo.jpg" in done.stderr
        assert "Traceback" not in done.stderr
    assert found(workspace) == {"03.png": OWN}
    assert config.load_settings(workspace.params).subjects["cup"].overrides == {}

    real = "CompVis/stable-diffusion-v1-4"
    workspaces.change(workspace.root, "base_model.pretrained_model_name_or_path", real)
    done = command(workspace)
    assert "found: Salesforce/blip-image-captioning-large: the model" in done.stderr
