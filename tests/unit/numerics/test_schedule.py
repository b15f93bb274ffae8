from typing import get_args

import pytest
import torch
from diffusers.optimization import get_scheduler

from dreambooth_core.config import LrScheduler
from dreambooth_core.numerics.schedule import LearningRate


@pytest.mark.parametrize(("num_steps", "warmup"), [(20, 0), (20, 5), (1, 0), (6, 5)])
@pytest.mark.parametrize("shape", get_args(LrScheduler))
def test_rates_are_those_of_diffusers_up_to_the_end(shape, num_steps, warmup):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    reference = get_scheduler(
        shape,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=num_steps,
        num_cycles=3,
        power=2.0,
    )
    ours = LearningRate(
        shape=shape,
        peak=2e-4,
        num_steps=num_steps,
        num_warmup_steps=warmup,
        num_cycles=3,
        power=2.0,
    )
    for step in range(num_steps + 1):
        assert ours.at(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("shape", get_args(LrScheduler))
def test_rate_stays_at_its_last_value_after_the_end(shape):
    rate = LearningRate(shape=shape, peak=1.0, num_steps=20, num_cycles=3, power=2.0)
    assert rate.at(33) == rate.at(20)


def test_warm_up_reaches_the_peak_after_its_number_of_updates():
    rate = LearningRate(shape="constant_with_warmup", peak=1.0, num_steps=100, num_warmup_steps=4)
    assert [rate.at(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
