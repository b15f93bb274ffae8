"""Predicted seconds, against the table that was measured, by hand."""

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
    """Round numbers: 10 ms and 20 ms a row; 50 ms and 10 ms a sampling step; 5 ms a score."""
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
def test_the_pocket_recipe_takes_what_the_table_says_by_hand(tmp_path):
    """600 steps of 8 rows; 128 class images of 10 steps; 11 models of 20 x 4 + 32 pictures."""
    times = speed.times_of(view_of_preset(tmp_path, "pocket"), "pocket", CPU, prompts=20)
    assert times.step == pytest.approx(0.17)
    assert times.train == pytest.approx(600 * 0.17)
    assert times.class_images == pytest.approx(128 * 0.15)
    assert times.evaluate == pytest.approx(11 * 112 * 0.175)


@pytest.mark.usefixtures("table")
def test_stages_that_are_skipped_are_not_in_the_total(tmp_path):
    times = speed.times_of(view_of_preset(tmp_path, "pocket"), "pocket", CPU, prompts=20)
    told = speed.describe(times, ["train", "evaluate"])
    assert told["total_seconds"] == round(600 * 0.17 + 11 * 112 * 0.175, 1)
    assert told["stage_seconds"].keys() == {"train", "evaluate"}
    assert speed.describe(times, [])["total_seconds"] is None


@pytest.mark.usefixtures("table")
def test_what_was_not_measured_has_no_time_and_no_total(tmp_path):
    """Neither is Adafactor, nor compiled blocks, nor any GPU, other architecture, other side."""
    view = view_of_preset(tmp_path, "sd14-6gb")
    told = speed.describe(speed.times_of(view, "sd1", CPU, prompts=25), ["train"])
    assert told["seconds_per_step"] is None
    assert told["total_seconds"] is None
    pocket = view_of_preset(tmp_path, "pocket")
    data = pocket.data.model_copy(update={"resolution": 128})
    compiled = pocket.train.model_copy(update={"compile_blocks": True})
    for change in ({"data": data}, {"train": compiled}):
        other = pocket.model_copy(update=change)
        assert speed.times_of(other, "pocket", CPU, prompts=20).train is None
    gpu = speed.times_of(view, "sd1", Device("gpu", "a card"), prompts=25)
    assert gpu.measured_on is None


def test_the_shipped_table_names_its_device_and_versions():
    table = json.loads((ROOT / "dreambooth_core/planning/speeds.json").read_bytes())
    assert {"device", "torch", "kind", "counted"} <= table["made_with"][0].keys()
    assert len(table["training"]) == 16
