"""Disks that are full and folders that are closed: a line that says so, with the way back."""

import os
import resource
import shutil
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pytest

from dreambooth_core.errors import StageError
from dreambooth_core.scripts import disk, main
from dreambooth_core.scripts.flags import DREAMBOOTH
from dreambooth_core.scripts.parsing import parse
from dreambooth_core.scripts.settings import make_settings
from tests.paths import ROOT
from tests.unit.scripts.command import arguments, prior, run

CLOSED = Path("/sys")
"""A folder in which nobody makes a file, root included."""
SUBJECT = ROOT / "examples" / "mug-stripes"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

_Usage = namedtuple("_Usage", "total used free")


@contextmanager
def files_of_at_most(num_bytes: int):
    """The kernel refuses larger ones, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_read_only_folders_are_refused(tiny_sd, photos, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".dreambooth").write_text("")
    for out, flags, error in (
        (CLOSED, {}, "--output_dir: /sys is not writable"),
        (tmp_path / "out", {}, f"--output_dir: {tmp_path}/out/.dreambooth cannot be made"),
        (tmp_path / "b", prior(CLOSED, 2), "--class_data_dir: /sys is not writable"),
    ):
        assert run(tiny_sd, photos, out, **flags) == 2
        assert error in capsys.readouterr().err


def test_failed_save_names_the_checkpoint_to_resume_from(
    tiny_sd, photos, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    flags = {"checkpointing_steps": 1, "resume_from_checkpoint": "latest"}
    assert run(tiny_sd, photos, out, **flags, max_train_steps=2) == 0
    capsys.readouterr()
    monkeypatch.setenv("DREAMBOOTH_TRACEBACK", "")
    size = (out / WEIGHTS).stat().st_size
    with files_of_at_most(size // 2):
        assert run(tiny_sd, photos, out, **flags, max_train_steps=3) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert line.startswith("error: the run cannot continue: File too large; found: ")
    assert str(out) in line
    assert "free space" in line
    assert line.endswith("--resume_from_checkpoint checkpoint-2 continues from there")
    monkeypatch.setenv("DREAMBOOTH_TRACEBACK", "1")
    with files_of_at_most(size // 2):
        assert run(tiny_sd, photos, out, **flags, max_train_steps=3) == 1
    assert "Traceback" in capsys.readouterr().err


def test_resume_checks_the_disk_for_its_remaining_checkpoints(
    tiny_sd, photos, tmp_path, capsys, monkeypatch
):
    flags = {"checkpointing_steps": 2, "resume_from_checkpoint": "latest"}
    assert run(tiny_sd, photos, tmp_path / "out", **flags, max_train_steps=2) == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(2**30, 2**30, 2**20))
    assert run(tiny_sd, photos, tmp_path / "out", **flags, max_train_steps=6) == 1
    error = capsys.readouterr().err
    assert "the disk is too small for this run" in error
    assert "3 checkpoints (with their copies) of" in error  # 4 and 6, and the result
    assert "2 resume states of" in error


@pytest.mark.parametrize(
    ("limit", "first", "there", "states"),
    [(None, 0, 0, 5), (None, 4, 2, 3), (2, 0, 0, 3), (2, 4, 2, 1), (2, 4, 1, 2), (2, 4, 7, 1)],
)
def test_disk_needs_room_for_one_checkpoint_more_than_the_limit(limit, first, there, states):
    flags = arguments("m", SUBJECT, Path("out"), checkpointing_steps=2, max_train_steps=10)
    flags += [f"--checkpoints_total_limit={limit}"] if limit else []
    settings = make_settings(DREAMBOOTH, parse(DREAMBOOTH, flags), {})
    kept = disk.kept(settings, last=10, first=first, there=there)
    assert (kept.checkpoints, kept.states) == (states + 1, states)


def test_bugs_keep_their_traceback(tmp_path):
    for mistake in (KeyError("unet"), OSError("a library's own words")):
        with pytest.raises(type(mistake)), main._disk_errors_explained(tmp_path):
            raise mistake


def test_error_without_checkpoint_suggests_no_resume(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with (
        pytest.raises(StageError, match="no checkpoint was saved yet"),
        main._disk_errors_explained(tmp_path),
    ):
        os.mkdir(tmp_path / "checkpoint-3")  # noqa: PTH102 - what a library does
