"""Stochastic rounding to bf16."""

import torch

from dreambooth_core.numerics.seeding import generator_for
from dreambooth_core.training.optim.per_parameter import stochastic_round


def _round(x: torch.Tensor, index: int = 0) -> torch.Tensor:
    return stochastic_round(x, generator=generator_for(0, "test", index))


def test_numbers_that_bf16_has_stay_as_they_are():
    x = torch.randn(1000, generator=generator_for(0, "x")).to(torch.bfloat16)
    assert torch.equal(_round(x.float()), x)


def test_rounding_up_is_as_likely_as_the_fraction():
    """bf16 numbers near 1 are 2^-7 apart; of 100,000 draws 30 % go up, within 5 sigma (0.7 %)."""
    x = torch.full((100_000,), 1 + 0.3 * 2**-7)
    rounded = _round(x).float()
    assert set(rounded.unique().tolist()) == {1.0, 1 + 2**-7}
    assert abs((rounded > 1).float().mean() - 0.3) < 0.0073


def test_the_mean_of_negative_numbers_is_kept_too():
    x = torch.full((100_000,), -(0.02 + 1e-6))
    assert abs(_round(x).double().mean() / x.double().mean() - 1) < 1e-4


def test_bits_depend_on_the_key():
    x = torch.randn(1000, generator=generator_for(0, "x"))
    assert torch.equal(_round(x), _round(x))
    assert not torch.equal(_round(x), _round(x, index=1))


def test_updates_below_the_last_bit_add_up():
    """1,000 updates of 1e-6 to a weight of 0.5, whose bf16 neighbours are 2^-9 and 2^-8 away."""
    nearest = torch.full((10_000,), 0.5, dtype=torch.bfloat16)
    random = nearest.clone()
    for step in range(1000):
        nearest = (nearest.float() + 1e-6).to(torch.bfloat16)
        random = _round(random.float() + 1e-6, step)
    assert torch.equal(nearest, torch.full_like(nearest, 0.5))
    assert abs(random.double().mean() - 0.501) < 1.5e-4
