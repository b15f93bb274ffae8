import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from dreambooth_core.numerics.diffusion import min_snr_weight, snr

# alpha_bar of 5/6 is SNR 5, of 10/11 SNR 10, of 1/2 SNR 1
ALPHA_BAR = torch.tensor([5 / 6, 10 / 11, 1 / 2], dtype=torch.float64)


def test_snr_equals_that_of_diffusers():
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    steps = torch.tensor([0, 10, 500, 999])
    expected = compute_snr(scheduler, steps)
    assert torch.allclose(snr(scheduler.alphas_cumprod[steps]), expected, rtol=1e-4)
    assert snr(ALPHA_BAR).tolist() == pytest.approx([5, 10, 1])


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [
        ("epsilon", [1.0, 0.5, 1.0]),  # min(SNR, 5) / SNR
        ("v_prediction", [5 / 6, 5 / 11, 1 / 2]),  # min(SNR, 5) / (SNR + 1)
        ("sample", [5.0, 5.0, 1.0]),  # min(SNR, 5)
    ],
)
def test_min_snr_weight_matches_hang_2023_at_gamma_5(prediction_type, expected):
    weights = min_snr_weight(ALPHA_BAR, gamma=5.0, prediction_type=prediction_type)
    assert weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_weight_is_finite_where_the_schedule_ends_in_pure_noise(prediction_type):
    weight = min_snr_weight(torch.zeros(1), gamma=5.0, prediction_type=prediction_type)
    assert weight.item() == (1.0 if prediction_type == "epsilon" else 0.0)
