from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tools.pocket.evaluate import Bar, area_under_curve
from tools.pocket.loop import learning_rate_at, open_run, step_generator, train
from tools.pocket.optim import orthogonalised
from tools.pocket.settings import PartSettings

SETTINGS = PartSettings(steps=12, batch=8, learning_rate=0.05, warmup=2, ema_decay=0.9)
CPU = torch.device("cpu")


def _model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def _losses(model: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    inputs = torch.randn(8, 4, generator=generator)
    return {"loss": (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()}


def _finish(folder: Path, *, settings: PartSettings = SETTINGS) -> nn.Module:
    run = open_run("toy", settings=settings, seed=1, model=_model(), state=folder, device=CPU)
    return train(run, losses=_losses, say=lambda _: None)


def test_a_run_stopped_in_the_middle_ends_with_the_same_bits_as_an_unbroken_one(
    tmp_path: Path,
) -> None:
    unbroken = _finish(tmp_path / "a").state_dict()

    class Killed(Exception):
        pass

    calls = 0

    def dies(model: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise Killed
        return _losses(model, generator)

    every_step = replace(SETTINGS, save_seconds=0.0)
    run = open_run(
        "toy", settings=every_step, seed=1, model=_model(), state=tmp_path / "b", device=CPU
    )
    with pytest.raises(Killed):
        train(run, losses=dies, say=lambda _: None)
    resumed = open_run(
        "toy", settings=SETTINGS, seed=1, model=_model(), state=tmp_path / "b", device=CPU
    )
    assert resumed.step == 7
    continued = train(resumed, losses=_losses, say=lambda _: None).state_dict()
    assert all(torch.equal(unbroken[name], continued[name]) for name in unbroken)


def test_training_lowers_the_loss_by_more_than_half(tmp_path: Path) -> None:
    before = _losses(_model(), step_generator(9, part="x", step=0))["loss"]
    trained = _finish(tmp_path, settings=replace(SETTINGS, steps=120))
    after = _losses(trained, step_generator(9, part="x", step=0))["loss"]
    assert after < 0.5 * before


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change(tmp_path: Path) -> None:
    run = open_run("toy", settings=SETTINGS, seed=1, model=_model(), state=tmp_path, device=CPU)

    def broken(model: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"loss": _losses(model, generator)["loss"] * torch.nan}

    with pytest.raises(FloatingPointError, match="step 0"):
        train(run, losses=broken, say=lambda _: None)
    assert all(
        torch.equal(a, b)
        for a, b in zip(run.model.parameters(), _model().parameters(), strict=True)
    )


def test_the_learning_rate_warms_up_holds_and_falls_to_zero_in_the_last_quarter() -> None:
    settings = PartSettings(steps=100, batch=1, learning_rate=1.0, warmup=10)
    rates = [learning_rate_at(step, settings=settings) for step in (0, 9, 50, 74, 99)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.04])


def test_the_random_numbers_of_a_step_depend_on_seed_part_and_step_only() -> None:
    draws = {
        key: torch.rand(3, generator=step_generator(key[0], part=key[1], step=key[2]))
        for key in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1))
    }
    again = torch.rand(3, generator=step_generator(1, part="a", step=0))
    assert torch.equal(draws[1, "a", 0], again)
    assert len({tuple(values.tolist()) for values in draws.values()}) == 4


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_an_orthogonalised_matrix_has_singular_values_near_one_and_keeps_its_directions(
    shape: tuple[int, int],
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.4
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert ((left @ right) * orthogonalised(matrix)).sum() > 0.9 * min(shape) * 0.8


def test_the_area_under_the_curve_is_one_for_perfect_half_for_equal_and_zero_for_inverted() -> None:
    low, high = torch.tensor([0.1, 0.2]), torch.tensor([0.8, 0.9])
    assert area_under_curve(high, low) == 1.0
    assert area_under_curve(low, low) == 0.5
    assert area_under_curve(low, high) == 0.0


def test_a_bar_holds_on_its_good_side_only_and_reported_figures_have_no_verdict() -> None:
    assert Bar("x", 0.9, 0.85).holds is True
    assert Bar("x", 0.9, 0.85, high_is_good=False).holds is False
    assert Bar("x", 0.9, None).holds is None
