"""What a script's checkpoint gives to a resume."""

import itertools
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from dreambooth_core.config import LoraSettings
from dreambooth_core.errors import SettingsError
from dreambooth_core.models import lora
from dreambooth_core.scripts import checkpoints, shared_weights
from dreambooth_core.scripts.checkpoints import STATE, ScriptCheckpoint
from dreambooth_core.training import protocols
from dreambooth_core.training.optim.ddp import WEIGHTS
from dreambooth_core.training.protocols import DEEPSPEED_TAG, FSDP_METADATA

KINDS = {
    "whole": protocols.launch_state_kind("ddp", num_processes=2),
    "FSDP2": protocols.launch_state_kind("fsdp", num_processes=2),
    "DeepSpeed of 2": protocols.launch_state_kind("deepspeed", num_processes=2),
    "DeepSpeed of 1": protocols.launch_state_kind("deepspeed", num_processes=1),
}
RECORD = ScriptCheckpoint(step=3, method="full", settings={}, files={})


def made_by(kind: str, checkpoint: Path, trained: dict[str, torch.Tensor]) -> Path:
    """A checkpoint as the launch leaves it, with the weights of a U-Net."""
    state, unet = checkpoint / STATE, checkpoint / "unet"
    for folder in (state, unet):
        folder.mkdir(parents=True)
    own = {name.removeprefix("unet."): tensor for name, tensor in trained.items()}
    save_file(own, unet / "diffusion_pytorch_model.safetensors")
    match kind.split():
        case ["whole"]:
            save_file(trained, state / WEIGHTS)
        case ["FSDP2"]:
            (state / FSDP_METADATA).touch()
        case [*_, number]:
            (state / DEEPSPEED_TAG).mkdir()
            for rank in range(int(number)):
                (state / DEEPSPEED_TAG / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    return checkpoint


@pytest.mark.parametrize(("old", "new"), itertools.product(KINDS, KINDS))
def test_resume_uses_the_state_or_only_the_weights(old, new, tmp_path, capsys):
    trained = {"unet.weight": torch.rand(3)}
    checkpoint = made_by(old, tmp_path / "checkpoint-3", trained)
    run = checkpoints.ResumingRun({}, KINDS[new], {name: [3] for name in trained})
    checkpoints.check_fits(checkpoint, run.trained)
    state = checkpoints.state_to_resume(checkpoint, RECORD, run, scratch=tmp_path / "scratch")
    assert (state == checkpoint / STATE) is (old == new)
    if old == new:
        assert "note" not in capsys.readouterr().out
        return
    assert torch.equal(load_file(state / WEIGHTS)["unet.weight"], trained["unet.weight"])
    assert [path.name for path in state.iterdir()] == [WEIGHTS]
    assert "the weights continue, the optimizer starts anew" in capsys.readouterr().out


def test_split_state_of_other_networks_is_refused(tmp_path):
    checkpoint = made_by("FSDP2", tmp_path / "checkpoint-3", {"unet.weight": torch.rand(3)})
    text = checkpoint / "text_encoder" / "model.safetensors"
    text.parent.mkdir()
    save_file({"bias": torch.rand(2)}, text)
    with pytest.raises(SettingsError, match=r"1 tensors, first text_encoder\.bias"):
        checkpoints.check_fits(checkpoint, {"unet.weight": [3]})
    with pytest.raises(SettingsError, match=r"1 tensors, first unet\.new"):
        checkpoints.check_fits(
            checkpoint, {"unet.weight": [3], "unet.new": [1], "text_encoder.bias": [2]}
        )


def test_split_adapter_weights_come_from_its_file(tmp_path, tiny_sd):
    """Of the U-Net with DoRA and of the text encoder: their names there are others."""
    parts = {"unet": UNet2DConditionModel.from_pretrained(tiny_sd / "unet"),
             "text_encoder": CLIPTextModel.from_pretrained(tiny_sd / "text_encoder")}  # fmt: skip
    settings = LoraSettings(rank=2, lora_alpha=2, lora_dropout=0, lora_layers=("to_q",),
                            use_dora=True)  # fmt: skip
    for part, network in parts.items():
        lora.add_adapter(network, settings, part=part, seed=1)
    trained = {
        f"{part}.{name}": parameter
        for part, network in parts.items()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    checkpoint = made_by("DeepSpeed of 2", tmp_path / "checkpoint-3", {})
    lora.write_adapter(parts, checkpoint)
    checkpoints.check_fits(checkpoint, {name: tensor.shape for name, tensor in trained.items()})
    found = shared_weights.read_weights(checkpoint / STATE, checkpoint=checkpoint, trained=trained)
    assert any("magnitude" in name for name in found)
    assert any(name.startswith("text_encoder.") for name in found)
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], trained[name]) for name in trained)


def test_state_omits_only_weights_that_equal_the_networks_bits(tmp_path):
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
    shared_weights.remove_shared(state, checkpoint=tmp_path)
    assert load_file(state / WEIGHTS).keys() == {"unet.rounded", "unet.half"}
    together = shared_weights.read_weights(state, checkpoint=tmp_path, trained=())
    assert together.keys() == trained.keys()
    assert all(torch.equal(together[name], trained[name]) for name in trained)
