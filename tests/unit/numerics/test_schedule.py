from typing import get_args

import pytest
import torch
from diffusers.optimization import get_scheduler

from dreambooth_core.config import LrScheduler
from dreambooth_core.numerics.schedule import LearningRate


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("shape", get_args(LrScheduler))
def test_rates_are_those_of_diffusers_at_every_update(shape, warmup):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    reference = get_scheduler(
        shape,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=20,
        num_cycles=3,
        power=2.0,
    )
    ours = LearningRate(
        shape=shape, peak=2e-4, num_steps=20, num_warmup_steps=warmup, num_cycles=3, power=2.0
    )
    for step in range(20):
        assert ours.at(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        reference.step()


def test_warm_up_reaches_the_peak_after_its_number_of_updates():
    rate = LearningRate(shape="constant_with_warmup", peak=1.0, num_steps=100, num_warmup_steps=4)
    assert [rate.at(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
