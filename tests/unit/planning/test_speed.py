"""Predicted seconds, against hand-computed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.planning import speed
from dreambooth_core.planning.speed import Device
from tests.presets import view_of

ROOT = Path(__file__).parents[3]
CPU = Device("cpu", name=None)


def view_of_preset(tmp_path: Path, name: str) -> config.SubjectView:
    return view_of(tmp_path, (ROOT / "presets" / f"{name}.yaml").read_text())


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 ms plus 20 ms per row; 50 ms plus 10 ms per sampling step; 5 ms per score."""
    kind = {"method": "full", "mixed_precision": "no", "gradient_checkpointing": False}
    own = {"device": "a CPU", "architecture": "pocket", "side_px": 64}
    made_up = {
        "made_with": [{"device": "a CPU", "kind": "cpu"}],
        "training": [{**own, **kind, "rows": n, "seconds": 0.01 + 0.02 * n} for n in (2, 16)],
        "pictures": [
            *({**own, "sampling_steps": n, "seconds": 0.05 + 0.01 * n} for n in (2, 12)),
            {**own, "sampling_steps": None, "seconds": 0.005},
        ],
    }
    monkeypatch.setattr(speed, "read_table", lambda _: made_up)


@pytest.mark.usefixtures("table")
def test_predicted_seconds_match_hand_computed_ones(tmp_path):
    """600 steps of 8 rows; 128 class images of 10 steps; rows of 20 x 4 + 32 images.

    Step 0 and the confirmation are complete rows; ten checkpoints race: a quarter each, and one.
    """
    times = speed.times_of(view_of_preset(tmp_path, "pocket"), "pocket", CPU, prompts=20)
    assert times.step == pytest.approx(0.17)
    assert times.train == pytest.approx(600 * 0.17)
    assert times.class_images == pytest.approx(128 * 0.15)
    assert times.evaluate == pytest.approx(4.5 * 112 * 0.175)
    assert times.confirm == pytest.approx(112 * 0.175)


@pytest.mark.usefixtures("table")
def test_skipped_stages_are_not_in_the_total(tmp_path):
    times = speed.times_of(view_of_preset(tmp_path, "pocket"), "pocket", CPU, prompts=20)
    report = speed.describe(times, ["train", "evaluate"])
    assert report["total_seconds"] == round(600 * 0.17 + 4.5 * 112 * 0.175, 1)
    assert report["stage_seconds"].keys() == {"train", "evaluate"}
    assert speed.describe(times, [])["total_seconds"] is None


@pytest.mark.usefixtures("table")
def test_unmeasured_training_has_neither_time_nor_total(tmp_path):
    """Adafactor, other architectures and sizes, compiled blocks and GPUs were not measured."""
    view = view_of_preset(tmp_path, "sd14-6gb")
    report = speed.describe(speed.times_of(view, "sd1", CPU, prompts=25), ["train"])
    assert report["seconds_per_step"] is None
    assert report["total_seconds"] is None
    pocket = view_of_preset(tmp_path, "pocket")
    data = pocket.data.model_copy(update={"resolution": 128})
    compiled = pocket.train.model_copy(update={"compile_blocks": True})
    for change in ({"data": data}, {"train": compiled}):
        other = pocket.model_copy(update=change)
        assert speed.times_of(other, "pocket", CPU, prompts=20).train is None
    gpu = speed.times_of(view, "sd1", Device("gpu", "a card"), prompts=25)
    assert gpu.measured_on is None


def test_shipped_table_names_its_device_and_versions():
    table = json.loads((ROOT / "dreambooth_core/planning/speeds.json").read_bytes())
    assert {"device", "torch", "kind", "counted"} <= table["made_with"][0].keys()
    assert len(table["training"]) == 16
