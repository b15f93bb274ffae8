"""`dreambooth subject mask`: the masks of the cache stage, nothing overwritten, all or nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli import automatic_masks as writing
from dreambooth_core import config, files
from dreambooth_core.data.loss_weights import WEIGHTS_FILE, normalised
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.models.tensors import read_tensors, tensor_bytes
from dreambooth_core.pipeline import StageContext, automatic_masks, run_stage
from dreambooth_core.workspace import Workspace
from tests.flow import workspaces

pytestmark = pytest.mark.slow

PHOTOS = [f"0{number}.png" for number in range(1, 6)]
CROPS = {"center_crop": False, "crops_per_image": 3, "random_flip": True}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A project with the shipped models and the photos of an example."""
    made = workspaces.with_cup(tmp_path / "project")
    workspaces.make_small(made.root)
    return made


def command(workspace: Workspace, *options: str) -> subprocess.CompletedProcess[str]:
    words = ("-m", "cli", "subject", "mask", "cup", *options)
    return workspaces.run_in(workspace.root, sys.executable, *words, check=False)


def weights_of(workspace: Workspace, masks: str) -> dict[str, torch.Tensor]:
    """The weights that the cache stage publishes, by image."""
    workspaces.change(workspace.root, "subjects.cup.overrides.data.masks", masks)
    context = StageContext(config.load_view(workspace, "cup"), workspace.places("cup"))
    for stage in ("validate", "class-images", "cache"):
        run_stage(context, stage)
    return read_tensors(workspace.stage_dir("cup", "cache") / WEIGHTS_FILE)


@pytest.mark.parametrize("crops", [{}, CROPS], ids=["center", "random"])
def test_masks_have_the_bytes_that_the_cache_stage_uses(
    workspace: Workspace, crops: dict[str, object]
) -> None:
    workspaces.change(workspace.root, "subjects.cup.overrides", {"data": crops})
    view = config.load_view(workspace, "cup")
    found = dict(automatic_masks.find(view, workspace.places("cup")))
    assert sorted(found) == PHOTOS
    ours = {f"images/{i:03d}.png": found[photo] for i, photo in enumerate(PHOTOS)}
    views = {image: each.mask_Vhw for image, each in ours.items() if each is not None}
    used = weights_of(workspace, "auto")
    assert tensor_bytes({k: normalised(v) for k, v in views.items()}) == tensor_bytes(used)
    if crops:
        return
    # The pictures as files: the stage finds the same positions again.
    assert command(workspace).returncode == 0
    from_files = weights_of(workspace, "files")
    for image, mask_Vhw in views.items():
        weights = from_files[image]
        assert torch.equal(weights > weights.amax() / 2, mask_Vhw > 0), image


def test_only_photos_without_a_mask_get_one(workspace: Workspace) -> None:
    folder = workspaces.cup_photos(workspace)
    own = folder / "masks" / "03.png"
    own.parent.mkdir()
    Image.new("L", (256, 256), 255).save(own)
    cut_out = Image.open(folder / "04.png").convert("RGBA")
    cut_out.putalpha(Image.new("L", cut_out.size, 200))
    cut_out.save(folder / "04.png")
    before = own.read_bytes()

    seen = command(workspace, "--out", "look", "--json")
    assert seen.returncode == 0, seen.stderr
    assert sorted(path.name for path in (workspace.root / "look").iterdir()) == PHOTOS
    assert [path.name for path in own.parent.iterdir()] == ["03.png"]

    done = command(workspace, "--use", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    states = {row["photo"]: row["state"] for row in made["masks"]}
    assert states == {**dict.fromkeys(PHOTOS, "new"), "03.png": "kept", "04.png": "kept"}
    assert (made["written"], made["used"]) == (3, True)
    assert own.read_bytes() == before
    for name in ("01.png", "02.png", "05.png"):
        mask = own.parent / name
        assert mask.read_bytes() == (workspace.root / "look" / name).read_bytes()
        assert Image.open(mask).size == (256, 256)
        assert 0.2 < np.asarray(Image.open(mask)).mean() / 255 < 0.7
    assert workspaces.dvc_of(workspace).status(["data/instance/cup.dvc"]) == {}
    overrides = config.load_settings(workspace.params).subjects["cup"].overrides
    assert overrides == {"data": {"masks": "files"}}
    assert "masks written: 0" in command(workspace).stdout
    assert "masks written: 5" in command(workspace, "--replace").stdout
    assert own.read_bytes() != before


def test_error_while_writing_leaves_everything_as_it_was(workspace: Workspace) -> None:
    before = files.tree_hashes(workspaces.cup_photos(workspace))
    shutil.move(workspace.root / ".dvc" / "config", workspace.root / "elsewhere")
    (workspace.root / ".dvc" / "config").mkdir()
    with pytest.raises(DreamBoothError, match="dvc add"):
        writing.write(workspace, "cup", workspaces.dvc_of(workspace), replace=True)
    assert files.tree_hashes(workspaces.cup_photos(workspace)) == before
    assert not (workspaces.cup_photos(workspace) / "masks").exists()


def test_wrong_input_is_one_sentence(workspace: Workspace) -> None:
    (workspace.root / "file").write_text("")
    folder = workspaces.cup_photos(workspace)
    for options, said in (
        (("--out", "file"), "--out is not a folder; found: file"),
        (("--out", "look", "--use"), "--out changes nothing of the subject"),
    ):
        done = command(workspace, *options)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {said}")
    Image.open(folder / "02.png").save(folder / "01.webp")
    (folder / "02.png").unlink()
    done = command(workspace)
    assert done.returncode == 2
    assert "error: 01.png and 01.webp would share masks/01.png" in done.stderr
    workspaces.change(workspace.root, "base_model.pretrained_model_name_or_path", "nobody/none")
    done = command(workspace, "--replace")
    assert done.returncode == 2
    assert "nobody/none" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "masks").exists()
