"""Several runs in one folder: which checkpoints `latest` and the limit look at."""

from __future__ import annotations

import shutil

from tests.unit.scripts.command import run


def checkpoints(out):
    return sorted(path.name for path in out.glob("checkpoint-*"))


def test_latest_resumes_the_run_that_wrote_last(tiny_sd, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(tiny_sd, photos, out, max_train_steps=5, checkpointing_steps=5) == 0
    capsys.readouterr()
    again = {"seed": 2, "checkpointing_steps": 1, "checkpoints_total_limit": 2}
    assert run(tiny_sd, photos, out, max_train_steps=3, **again) == 0
    assert "note: checkpoint-5 in" in capsys.readouterr().out
    assert checkpoints(out) == ["checkpoint-2", "checkpoint-3", "checkpoint-5"]  # two of its own
    flags = {**again, "seed": None, "max_train_steps": 4, "resume_from_checkpoint": "latest"}
    assert run(tiny_sd, photos, out, **flags) == 0
    assert "resuming from checkpoint-3" in capsys.readouterr().out
    assert checkpoints(out) == ["checkpoint-3", "checkpoint-4", "checkpoint-5"]


def test_older_checkpoint_resumed_with_other_settings_starts_a_new_run(
    tiny_sd, photos, tmp_path, capsys
):
    out, back = tmp_path / "out", {"resume_from_checkpoint": "checkpoint-2"}
    assert run(tiny_sd, photos, out, max_train_steps=4, checkpointing_steps=2) == 0
    other = {"learning_rate": 2e-4, "checkpointing_steps": 3}
    assert run(tiny_sd, photos, out, max_train_steps=3, **other, **back) == 0
    assert checkpoints(out) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    capsys.readouterr()
    assert run(tiny_sd, photos, out, max_train_steps=3, resume_from_checkpoint="latest") == 0
    assert "resuming from checkpoint-3" in capsys.readouterr().out


def test_older_checkpoint_resumed_with_equal_settings_continues_the_run(
    tiny_sd, photos, tmp_path, capsys
):
    out, flags = tmp_path / "out", {"max_train_steps": 4, "checkpointing_steps": 2}
    assert run(tiny_sd, photos, out, **flags) == 0
    assert run(tiny_sd, photos, out, **flags, resume_from_checkpoint="checkpoint-2") == 0
    assert "of another run" not in capsys.readouterr().out


def test_resume_on_other_photos_is_noted(tiny_sd, photos, tmp_path, capsys):
    out, flags = tmp_path / "out", {"checkpointing_steps": 1, "resume_from_checkpoint": "latest"}
    assert run(tiny_sd, photos, out, checkpointing_steps=1, max_train_steps=1) == 0
    assert run(tiny_sd, photos, out, **flags, max_train_steps=2) == 0
    assert "other photos" not in capsys.readouterr().out
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    sorted(other.iterdir())[0].unlink()
    assert run(tiny_sd, other, out, **flags, max_train_steps=3) == 0
    assert "note: other photos or class images than the checkpoint's" in capsys.readouterr().out


def test_latest_refuses_checkpoints_of_other_programs(tiny_sd, photos, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "checkpoint-500" / "unet").mkdir(parents=True)
    for name, words in (("latest", "only checkpoints of other scripts"),
                        ("checkpoint-500", "was not made by this project's scripts")):  # fmt: skip
        assert run(tiny_sd, photos, out, resume_from_checkpoint=name) == 2
        assert words in capsys.readouterr().err
    assert run(tiny_sd, photos, out, checkpointing_steps=2) == 0
    assert run(tiny_sd, photos, out, resume_from_checkpoint="latest") == 0
    said = capsys.readouterr().out
    assert "warning: checkpoint-500 was not made by this project's scripts" in said
    assert "resuming from checkpoint-2" in said
