"""TensorBoard and W&B get the curves of a training in addition to MLflow."""

from __future__ import annotations

import logging

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth_core.training.trackers import TrackerSink


def tensorboard(folder, values):
    sink = TrackerSink("tensorboard", project="run", logging_dir=folder)
    for step, loss in values:
        sink.metrics({"loss": loss}, step=step)
    sink.close(status="KILLED")


def test_resumed_training_continues_its_tensorboard_run(tmp_path):
    """Steps after the last save were logged by the killed process, and come again."""
    tensorboard(tmp_path, [(2, 0.5), (4, 0.4), (6, 0.3)])
    tensorboard(tmp_path, [(4, 0.25), (6, 0.125), (8, 0.0625)])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    seen = [(each.step, each.value) for each in events.Scalars("loss")]
    assert seen == [(2, 0.5), (4, 0.25), (6, 0.125), (8, 0.0625)]


def test_broken_tracker_is_a_warning(tmp_path, caplog):
    (tmp_path / "run").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        tensorboard(tmp_path, [(1, 0.5), (2, 0.4)])
    (line,) = [each.getMessage() for each in caplog.records if "gets nothing" in each.getMessage()]
    assert line.startswith("tensorboard gets nothing from here on: ")


def test_offline_run_of_wandb_is_written(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    sink = TrackerSink(
        "wandb", project="mug", logging_dir=tmp_path, options={"id": "a", "dir": str(tmp_path)}
    )
    sink.metrics({"loss": 0.5}, step=1)
    sink.close(status="FINISHED")
    assert [path.name for path in tmp_path.glob("wandb/offline-run-*/*.wandb")] == ["run-a.wandb"]
