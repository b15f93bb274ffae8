"""The average that is published: its formula, and that the training does not feel it."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file

from dreambooth_core.training.optim.ddp import WEIGHTS
from dreambooth_core.training.optim.ema import MovingAverage, decay_at
from tests.unit.training import tiny


def test_average_equals_diffusers_except_for_first_decay():
    """Theirs is 0 there and ours 0.1, so ours is begun at what theirs is after it."""
    weight = torch.nn.Parameter(torch.zeros(3))
    theirs, ours = EMAModel([weight], decay=0.8), MovingAverage({"w": weight}, decay=0.8)
    values = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    for step, value in enumerate(values, start=1):
        weight.data.copy_(value)
        theirs.step([weight])
        ours.update(step)
        if step == 1:
            assert torch.equal(theirs.shadow_params[0], value)
            torch.testing.assert_close(ours.tensors["w"], 0.9 * value)
            ours.restore({"w": value})
    assert decay_at(5, decay=0.8) == pytest.approx(5 / 14)
    torch.testing.assert_close(ours.tensors["w"], theirs.shadow_params[0])


def test_borrowed_weights_come_back_to_the_bit():
    weight = torch.nn.Parameter(torch.randn(5, dtype=torch.bfloat16))
    average = MovingAverage({"w": weight}, decay=0.5)
    with torch.no_grad():
        weight += 1
    own = weight.detach().clone()
    average.update(1)
    with average.in_place():
        assert not torch.equal(weight, own)
        assert torch.equal(weight, average.tensors["w"].bfloat16())
    assert torch.equal(weight, own)


@pytest.mark.parametrize("fused", [False, True])
def test_checkpoints_hold_the_average_without_changing_the_training(tmp_path, tiny_sd, fused):
    recipe = {"fused_backward": True, "max_grad_norm": None} if fused else {}
    recipe["checkpointing_steps"] = 1
    plain = tiny.make_job(tmp_path, tiny_sd, name="plain", **recipe)
    averaged = tiny.make_job(tmp_path, tiny_sd, name="averaged", ema_decay=0.7, **recipe)
    for job in (plain, averaged):
        tiny.train(job)
    states = [load_file(job.resume_dir / "step-00000006" / WEIGHTS) for job in (plain, averaged)]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    weight = "conv_in.weight"
    file = "unet/diffusion_pytorch_model.safetensors"
    steps = [load_file(plain.out_dir / f"checkpoint-{n}" / file)[weight] for n in range(1, 7)]
    expected = load_file(tiny_sd / file)[weight]
    for step, value in enumerate(steps, start=1):
        decay = min(0.7, step / (step + 9))
        expected = decay * expected + (1 - decay) * value
    published = load_file(averaged.out_dir / "checkpoint-6" / file)[weight]
    torch.testing.assert_close(published, expected)
    assert (published - steps[-1]).abs().max() > 1e-4
