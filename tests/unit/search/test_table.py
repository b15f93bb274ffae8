"""What `dreambooth sweep` prints."""

from __future__ import annotations

import pytest

from cli import commands_sweep
from cli.session import make_console


def test_table_and_next_steps_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    trial = {"number": 0, "state": "complete", "unchanged": True, "changes": {}}
    won = {
        **{"number": 1, "state": "complete", "unchanged": False, "qualified": True},
        **{"changes": {"train.learning_rate": 1e-4}, "name": "checkpoint-60"},
        **{"dino": 0.8, "clip_t": 0.3, "pres": 0.5},
    }
    outcome = {
        **{"subject": "mug", "study": "s", "space": {"train.learning_rate": {}}, "winner": 1},
        **{"trials": [trial, won], "why": "because.", "applied": None},
        **{"changes": {"train.learning_rate": 1e-4}, "overrides": "{train: {learning_rate: 1e-4}}"},
    }
    commands_sweep.show(make_console(stderr=False), outcome)
    text = capsys.readouterr().out
    for part in ("unchanged", "0.0001", "checkpoint-60", "Winner: trial 1", "--apply"):
        assert part in text
    assert "  overrides: {train: {learning_rate: 1e-4}}" in text
