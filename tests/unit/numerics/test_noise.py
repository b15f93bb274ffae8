import pytest
import torch
from diffusers import DDPMScheduler

from dreambooth_core.numerics.diffusion import (
    add_noise,
    draw_noise,
    draw_timestep,
    prediction_target,
)
from dreambooth_core.numerics.seeding import derive_seed, generator_for

SHAPE = (4, 8, 8)


def _noise(position: int, *, is_class: bool = False, seed: int = 1, offset: float = 0.0):
    return draw_noise(SHAPE, seed=seed, is_class=is_class, position=position, offset=offset)


def test_noise_depends_only_on_seed_role_and_position():
    assert torch.equal(_noise(7), _noise(7))
    others = [_noise(8), _noise(7, is_class=True), _noise(7, seed=2)]
    assert not any(torch.equal(_noise(7), other) for other in others)


def test_noise_and_timesteps_are_those_of_their_keys():
    """The bits of every training depend on these keys: a new one needs a new `versions.train`."""
    for is_class in (False, True):
        generator = generator_for(1, "diffusion-noise", int(is_class), 7)
        noise = torch.randn(*SHAPE, generator=generator)
        shift = torch.randn(4, 1, 1, generator=generator)
        assert torch.equal(draw_noise(SHAPE, seed=1, is_class=is_class, position=7), noise)
        assert torch.equal(_noise(7, is_class=is_class, offset=0.5), noise + 0.5 * shift)
        timestep = draw_timestep(1000, seed=1, is_class=is_class, position=7)
        assert timestep == derive_seed(1, "timestep", int(is_class), 7) % 1000


def test_noise_is_standard_normal():
    draws = torch.stack([_noise(position) for position in range(200)])
    assert draws.mean().abs().item() < 0.02
    assert draws.std().item() == pytest.approx(1, abs=0.02)


def test_offset_noise_only_shifts_whole_channels():
    shift = _noise(7, offset=0.1) - _noise(7)
    per_channel = shift.flatten(1)
    assert torch.allclose(per_channel, per_channel[:, :1].expand_as(per_channel), atol=1e-6)
    assert len(set(per_channel[:, 0].tolist())) == 4


def test_offset_noise_has_the_strength_that_is_asked_for():
    means = torch.cat([(_noise(p, offset=0.5) - _noise(p))[:, 0, 0] for p in range(500)])
    assert means.std().item() == pytest.approx(0.5, rel=0.05)


def test_timesteps_are_uniform_over_the_schedule():
    draws = [draw_timestep(1000, seed=3, is_class=False, position=p) for p in range(4000)]
    assert min(draws) >= 0
    assert max(draws) < 1000
    assert sum(draws) / 4000 == pytest.approx(499.5, abs=4 * 288.7 / 4000**0.5)  # 4 standard errors


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_forward_process_and_targets_are_those_of_diffusers(prediction_type):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    generator = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(3, *SHAPE, generator=generator) for _ in range(2))
    steps = torch.tensor([0, 400, 999])
    alpha_bar = scheduler.alphas_cumprod[steps]
    expected = {
        "epsilon": eps,
        "v_prediction": scheduler.get_velocity(z, eps, steps),
        "sample": z,
    }[prediction_type]
    target = prediction_target(z, eps, alpha_bar, prediction_type=prediction_type)
    assert torch.allclose(target, expected, atol=1e-6)
    assert torch.allclose(
        add_noise(z, eps, alpha_bar), scheduler.add_noise(z, eps, steps), atol=1e-6
    )
