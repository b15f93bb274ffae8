"""What is tried before the first step, and what stops a run there."""

from __future__ import annotations

import contextlib
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_core.errors import DreamBoothError, StageError
from dreambooth_core.models.footprint import optimizer_bytes, state_bytes
from dreambooth_core.training import dry_run
from dreambooth_core.training.optim.ddp import OPTIMIZER, WEIGHTS
from dreambooth_core.training.trainable import load_trainable_model
from tests.unit.training import tiny

_Usage = namedtuple("_Usage", "total used free")


@pytest.mark.parametrize(
    "settings", [{}, {"method": "lora", "lora": tiny.LORA}], ids=["full", "lora"]
)
def test_fresh_run_does_dry_run_and_leaves_nothing_behind(settings, tmp_path, tiny_sd, capsys):
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=1, dry_run=True, **settings)
    plain = tiny.make_job(tmp_path, tiny_sd, name="plain", max_train_steps=1, **settings)
    tiny.train(job)
    assert "saved, exported, loaded and sampled step 0 in" in capsys.readouterr().out
    assert not list(job.state_dir.glob(".aside*"))
    tiny.train(plain)
    published = [(j.out_dir / "metrics.csv").read_bytes() for j in (job, plain)]
    assert published[0] == published[1]


def test_resumed_run_skips_dry_run(tmp_path, tiny_sd, capsys):
    job = tiny.make_job(tmp_path, tiny_sd, dry_run=True, max_train_steps=2)
    assert tiny.train(job, should_stop=tiny.stop_after(1)).how == "stopped"
    capsys.readouterr()
    tiny.train(job)
    assert "sampled step 0" not in capsys.readouterr().out


def test_base_model_that_cannot_sample_fails_before_training(tmp_path, tiny_sd):
    broken = tmp_path / "base"
    shutil.copytree(tiny_sd, broken)
    shutil.rmtree(broken / "vae")
    job = tiny.make_job(tmp_path, broken, dry_run=True)
    with pytest.raises(DreamBoothError):
        tiny.train(job)
    assert tiny.updates(job) == []


@pytest.mark.parametrize(
    ("fails", "told"),
    [("sample", "load the checkpoint"), ("export_pipeline", "export the checkpoint")],
)
def test_unexpected_errors_are_reported_as_failed_dry_run(
    tmp_path, tiny_sd, monkeypatch, fails, told
):
    def fail(*_args, **_kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(dry_run, fails, fail)
    job = tiny.make_job(tmp_path, tiny_sd, dry_run=True)
    with pytest.raises(StageError, match=f"dry run could not {told}"):
        tiny.train(job)
    assert tiny.updates(job) == []


def test_the_disk_must_hold_every_copy_of_each_checkpoint(tmp_path, tiny_sd, monkeypatch):
    """Two checkpoints, three times each; exactly enough is enough, a byte less is not."""
    job = tiny.make_job(tmp_path, tiny_sd).model_copy(update={"copies_of_checkpoints": 3})
    kept = dry_run.disk_plan(job)
    assert kept == dry_run.DiskPlan(checkpoints=6, states=3)
    needed = 6 * 1000 + 3 * 10
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: _Usage(0, 0, free))
        expectation = contextlib.nullcontext() if fits else pytest.raises(StageError)
        with expectation:
            dry_run.check_disk(tmp_path, kept, checkpoint_bytes=1000, state_bytes=10)


def test_full_disk_is_reported_with_sizes_before_training(tmp_path, tiny_sd, monkeypatch):
    """Checkpoints 3 and 6 once each, and three resume states (two are kept), in MiB."""
    job = tiny.make_job(tmp_path, tiny_sd, dry_run=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(2**30, 2**30, 2**20))
    with pytest.raises(StageError, match="too small for this run") as caught:
        tiny.train(job)
    text = str(caught.value)
    assert "found: 1 MiB free" in text
    assert "2 checkpoints (with their copies) of" in text
    assert "3 resume states of" in text
    assert tiny.updates(job) == []


def test_extended_run_checks_the_disk_before_it_resumes(tmp_path, tiny_sd, monkeypatch):
    """19 more checkpoints; of two states kept there are two, and one more while one is written."""
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=2, checkpointing_steps=1)
    assert tiny.train(job).how == "done"
    longer = tiny.make_job(tmp_path, tiny_sd, max_train_steps=21, checkpointing_steps=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(2**30, 2**30, 2**20))
    with pytest.raises(StageError, match="too small for this run") as caught:
        tiny.train(longer)
    assert "19 checkpoints (with their copies) of" in str(caught.value)
    assert "1 resume states of" in str(caught.value)
    assert len(tiny.updates(longer)) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_8bit_adam": True},
        {"optimizer": "adafactor"},
        {"optimizer": "adafactor", "weight_dtype": "bf16", "mixed_precision": "bf16"},
        {"ema_decay": 0.9},
        {"ema_decay": 0.9, "weight_dtype": "bf16", "mixed_precision": "bf16"},
    ],
    ids=["AdamW", "8-bit AdamW", "Adafactor", "Adafactor, bf16", "average", "average, bf16"],
)
def test_state_size_is_predicted_exactly(settings, tmp_path, tiny_sd):
    """To the byte, but for counters of steps and the files' headers."""
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=1, **settings)
    tiny.train(job)
    model = load_trainable_model(job, device=torch.device("cpu"))
    shapes = [tuple(p.shape) for p in model.trainable.values()]
    (folder,) = job.resume_dir.glob("step-*")
    weights = _bytes(load_file(folder / WEIGHTS))
    moments = _bytes({k: t for k, t in load_file(folder / OPTIMIZER).items() if t.ndim})
    assert optimizer_bytes(shapes, job.train) == moments
    average = folder / "average.safetensors"
    averages = _bytes(load_file(average)) if average.is_file() else 0
    assert (averages > 0) is (job.train.ema_decay is not None)
    assert state_bytes(shapes, job.train) == weights + moments + averages


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
