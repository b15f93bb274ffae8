"""What a script's checkpoint gives to a resume."""

import pytest

from dreambooth_core.doors import layout
from dreambooth_core.doors.layout import STATE, ScriptCheckpoint
from dreambooth_core.errors import SettingsError


def test_a_state_that_is_split_over_processes_is_not_taken_apart_for_another_optimizer(tmp_path):
    checkpoint = tmp_path / "checkpoint-3"
    (checkpoint / STATE / "deepspeed").mkdir(parents=True)
    record = ScriptCheckpoint(step=3, method="full", settings={"use_8bit_adam": False}, files={})
    own, other, scratch = {"use_8bit_adam": False}, {"use_8bit_adam": True}, tmp_path / "scratch"
    same = layout.state_to_resume(checkpoint, record, settings=own, scratch=scratch)
    assert same == checkpoint / STATE
    with pytest.raises(SettingsError, match="checkpoint-3 is split over processes"):
        layout.state_to_resume(checkpoint, record, settings=other, scratch=scratch)
    assert not scratch.exists()
