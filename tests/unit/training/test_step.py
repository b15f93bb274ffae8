"""The loss of a micro-step against values worked out apart from the code under test."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler

from dreambooth_core.models.denoiser import TrainBatch
from dreambooth_core.numerics.diffusion import draw_noise, draw_timestep, min_snr_weight
from dreambooth_core.training.step import LossSettings, loss_of, prepare
from tests.unit.training import tiny

CPU = torch.device("cpu")


class Scaled(torch.nn.Module):
    """Predicts the noisy latents times a number: small enough to work the loss out by hand."""

    def forward(self, noisy, timestep, **text):
        return noisy * 0.25


def _settings(**changes) -> LossSettings:
    values = {
        "alpha_bar_T": DDPMScheduler(beta_schedule="scaled_linear").alphas_cumprod,
        "prediction_type": "epsilon",
        "prior_loss_weight": 0.5,
        "snr_gamma": None,
        "offset_noise": 0.0,
        "seed": 11,
    }
    return LossSettings(**{**values, **changes})


def _row_loss(batch: TrainBatch, row: int, settings: LossSettings) -> float:
    """One row's weighted error, from the papers' formulas, in plain numbers of fp64."""
    key = {
        "seed": settings.seed,
        "is_class": batch.is_class_B[row],
        "position": batch.position_B[row],
    }
    z = batch.latents_BCHW[row].double()
    eps = draw_noise(z.shape, **key).double()
    a = settings.alpha_bar_T[draw_timestep(1000, **key)].double().item()
    noisy = a**0.5 * z + (1 - a) ** 0.5 * eps
    is_v = settings.prediction_type == "v_prediction"
    target = a**0.5 * eps - (1 - a) ** 0.5 * z if is_v else eps
    error = ((0.25 * noisy - target) ** 2).mean().item()
    if settings.snr_gamma is None:
        return error
    ratio = a / (1 - a)
    return error * min(ratio, settings.snr_gamma) / (ratio + 1 if is_v else ratio)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_loss_with_prior_and_min_snr_matches_hand_calculation(batch_size, prediction_type, gamma):
    settings = _settings(prediction_type=prediction_type, snr_gamma=gamma)
    batch = tiny.rows_at(range(4, 4 + batch_size))
    losses = [_row_loss(batch, row, settings) for row in range(2 * batch_size)]
    instance, class_ = losses[:batch_size], losses[batch_size:]
    expected = sum(instance) / batch_size + 0.5 * sum(class_) / batch_size
    parts, _ = loss_of(Scaled(), prepare(batch, settings, device=CPU), prior_loss_weight=0.5)
    assert parts.total.item() == pytest.approx(expected, rel=1e-5)
    assert parts.instance.item() == pytest.approx(sum(instance) / batch_size, rel=1e-5)


def test_min_snr_of_class_rows_leaves_the_instance_loss_unchanged():
    with_class = prepare(tiny.rows_at([3]), _settings(snr_gamma=5.0), device=CPU)
    alone = prepare(
        tiny.rows_at([3], with_class=False),
        _settings(snr_gamma=5.0, prior_loss_weight=None),
        device=CPU,
    )
    parts, _ = loss_of(Scaled(), with_class, prior_loss_weight=1.0)
    without, _ = loss_of(Scaled(), alone, prior_loss_weight=None)
    assert parts.instance.item() == without.instance.item()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_class_timestep_does_not_weight_the_instance_row(
    prediction_type,
):
    """The peer weighs one prediction by two timesteps: broadcasting averages them, unseen."""
    settings = _settings(snr_gamma=5.0, prediction_type=prediction_type)

    def weights(position: int) -> list[float]:
        """Those of the instance and the class row, by their own timesteps."""
        steps = [
            draw_timestep(1000, seed=settings.seed, is_class=role, position=position)
            for role in (False, True)
        ]
        return min_snr_weight(
            settings.alpha_bar_T[steps], gamma=5.0, prediction_type=prediction_type
        ).tolist()

    position = next(p for p in range(100) if abs(weights(p)[0] - weights(p)[1]) > 0.4)
    batch = tiny.rows_at([position])
    expected = _row_loss(batch, 0, settings)
    parts, _ = loss_of(Scaled(), prepare(batch, settings, device=CPU), prior_loss_weight=1.0)
    own, other = weights(position)
    assert parts.instance.item() == pytest.approx(expected, rel=1e-5)
    peers = expected / own * (own + other) / 2
    assert abs(peers - expected) > 0.1 * expected


def test_loss_with_lambda_zero_equals_loss_without_class_images():
    with_class = prepare(tiny.rows_at(range(3)), _settings(prior_loss_weight=0.0), device=CPU)
    alone = prepare(
        tiny.rows_at(range(3), with_class=False), _settings(prior_loss_weight=None), device=CPU
    )
    parts, _ = loss_of(Scaled(), with_class, prior_loss_weight=0.0)
    without, _ = loss_of(Scaled(), alone, prior_loss_weight=None)
    assert parts.total.item() == pytest.approx(without.total.item(), rel=1e-6)
    assert parts.class_.item() > 0


def test_loss_does_not_depend_on_the_order_of_the_rows():
    batch = tiny.rows_at(range(3))
    order = [4, 0, 3, 2, 5, 1]
    shuffled = TrainBatch(
        latents_BCHW=batch.latents_BCHW[order],
        text_BLD=batch.text_BLD[order],
        is_class_B=tuple(batch.is_class_B[i] for i in order),
        position_B=tuple(batch.position_B[i] for i in order),
        image_B=tuple(batch.image_B[i] for i in order),
    )
    losses = [
        loss_of(Scaled(), prepare(rows, _settings(), device=CPU), prior_loss_weight=0.5)[0].total
        for rows in (batch, shuffled)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)


def test_a_missing_class_row_is_a_bug_that_is_caught():
    with pytest.raises(AssertionError, match="0 class rows for 2 instance rows"):
        prepare(tiny.rows_at(range(2), with_class=False), _settings(), device=CPU)


def test_masked_positions_of_instance_rows_do_not_count():
    """Half of the positions weigh 2, the others 0; class rows count whole."""
    batch = tiny.rows_at([3])
    weights = torch.ones(2, 1, *batch.latents_BCHW.shape[2:])
    weights[0, 0, :, ::2], weights[0, 0, :, 1::2] = 2.0, 0.0
    inputs = prepare(dataclasses.replace(batch, loss_weights_B1HW=weights), _settings(), device=CPU)
    parts, _ = loss_of(Scaled(), inputs, prior_loss_weight=0.5)
    whole, _ = loss_of(Scaled(), prepare(batch, _settings(), device=CPU), prior_loss_weight=0.5)
    error_CHW = (0.25 * inputs.noisy_BCHW[0] - inputs.target_BCHW[0]).square()
    assert parts.instance.item() == pytest.approx(error_CHW[:, :, ::2].mean().item(), rel=1e-5)
    assert parts.class_.item() == whole.class_.item()
