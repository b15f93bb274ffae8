"""What a script's checkpoint gives to a resume."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth_core.doors import layout, single_copy
from dreambooth_core.doors.layout import STATE, ScriptCheckpoint
from dreambooth_core.errors import SettingsError
from dreambooth_core.training.update_plain import WEIGHTS


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


def test_a_state_leaves_out_only_the_weights_that_the_networks_hold_to_the_bit(tmp_path):
    state = tmp_path / STATE
    for folder in (state, tmp_path / "unet"):
        folder.mkdir()
    trained = {f"unet.{name}": torch.rand(3) for name in ("same", "rounded", "half")}
    save_file(trained, state / WEIGHTS)
    published = {
        "same": trained["unet.same"],
        "rounded": trained["unet.rounded"].nextafter(torch.ones(3)),
        "half": trained["unet.half"].bfloat16(),
    }
    save_file(published, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    single_copy.leave_out(state, checkpoint=tmp_path)
    assert load_file(state / WEIGHTS).keys() == {"unet.rounded", "unet.half"}
    together = single_copy.read_weights(state, checkpoint=tmp_path)
    assert together.keys() == trained.keys()
    assert all(torch.equal(together[name], trained[name]) for name in trained)
