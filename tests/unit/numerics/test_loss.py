import torch

from dreambooth_core.numerics.diffusion import mse_per_example, prior_preserving_loss, role_weights


def test_row_error_is_the_mean_of_its_squares():
    pred = torch.tensor([[[[1.0, 2.0]]], [[[-1.0, 0.0]]]])
    target = torch.tensor([[[[0.0, 4.0]]], [[[2.0, 0.0]]]])
    assert mse_per_example(pred, target).tolist() == [2.5, 4.5]  # (1 + 4) / 2 and 9 / 2


def test_weighted_row_error_counts_each_position_by_its_weight():
    pred = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    weights = torch.tensor([[[[0.5, 2.0]]]])  # (0.5 (1 + 9) + 2 (4 + 16)) / 4
    assert mse_per_example(pred, torch.zeros(1, 2, 1, 2), weights).tolist() == [11.25]


def test_loss_is_instance_mean_plus_lambda_class_mean():
    # instance rows 1 and 3, class rows 10 and 30: 2 + 0.5 * 20 = 12
    loss_B = torch.tensor([10.0, 1.0, 3.0, 30.0])
    parts = prior_preserving_loss(
        loss_B, role_weights([True, False, False, True]), prior_loss_weight=0.5
    )
    assert [part.item() for part in parts] == [12.0, 2.0, 20.0]


def test_single_instance_and_class_rows_have_full_weight():
    # a plain mean over the rows would give 2.5, half of the paper's sum
    parts = prior_preserving_loss(
        torch.tensor([2.0, 3.0]), role_weights([False, True]), prior_loss_weight=1.0
    )
    assert parts.total.item() == 5.0


def test_without_class_rows_the_class_part_is_zero():
    parts = prior_preserving_loss(
        torch.tensor([2.0, 4.0]), role_weights([False, False]), prior_loss_weight=1.0
    )
    assert [part.item() for part in parts] == [3.0, 3.0, 0.0]


def test_half_precision_predictions_are_compared_in_fp32():
    pred = torch.full((1, 1, 1, 2), 300.0, dtype=torch.float16)  # 300 squared overflows fp16
    assert mse_per_example(pred, torch.zeros(1, 1, 1, 2)).item() == 90000.0
