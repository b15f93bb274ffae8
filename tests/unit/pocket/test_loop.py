from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dreambooth_core.numerics.seeding import generator_for
from tools.pocket.evaluate import Metric, area_under_curve
from tools.pocket.loop import Optimizers, learning_rate_at, open_run, train
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
    return train(run, losses=_losses, log=lambda _: None)


def test_resumed_run_ends_with_the_bits_of_an_uninterrupted_run(tmp_path: Path) -> None:
    uninterrupted = _finish(tmp_path / "a").state_dict()

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
        train(run, losses=dies, log=lambda _: None)
    resumed = open_run(
        "toy", settings=SETTINGS, seed=1, model=_model(), state=tmp_path / "b", device=CPU
    )
    assert resumed.step == 7
    continued = train(resumed, losses=_losses, log=lambda _: None).state_dict()
    assert all(torch.equal(uninterrupted[name], continued[name]) for name in uninterrupted)


def test_training_halves_the_loss(tmp_path: Path) -> None:
    before = _losses(_model(), generator_for(9, "x"))["loss"]
    trained = _finish(tmp_path, settings=replace(SETTINGS, steps=120))
    after = _losses(trained, generator_for(9, "x"))["loss"]
    assert after < 0.5 * before


def test_non_finite_loss_raises_before_the_weights_change(tmp_path: Path) -> None:
    run = open_run("toy", settings=SETTINGS, seed=1, model=_model(), state=tmp_path, device=CPU)

    def broken(model: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"loss": _losses(model, generator)["loss"] * torch.nan}

    with pytest.raises(FloatingPointError, match="step 0"):
        train(run, losses=broken, log=lambda _: None)
    assert all(
        torch.equal(a, b)
        for a, b in zip(run.model.parameters(), _model().parameters(), strict=True)
    )


def test_learning_rate_warms_up_then_decays_in_the_last_quarter() -> None:
    settings = PartSettings(steps=100, batch=1, learning_rate=1.0, warmup=10)
    rates = [learning_rate_at(step, settings=settings) for step in (0, 9, 50, 74, 99)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.04])


def test_convolution_kernels_move_like_their_flattened_matrices() -> None:
    kernel = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    convolution, linear = nn.Conv2d(3, 6, 2), nn.Linear(12, 6)
    with torch.no_grad():
        convolution.weight.copy_(kernel)
        linear.weight.copy_(kernel.flatten(1))
    for model in (convolution, linear):
        optimizers = Optimizers(model, settings=SETTINGS)
        for _ in range(3):
            (model.weight - 1).square().sum().backward()
            optimizers.step(learning_rate=0.1)
        assert model.weight.grad is None
    assert not torch.equal(convolution.weight, kernel)
    assert torch.equal(convolution.weight.flatten(1), linear.weight)


def test_auc_is_1_for_perfect_half_for_equal_and_0_for_inverted_scores() -> None:
    low, high = torch.tensor([0.1, 0.2]), torch.tensor([0.8, 0.9])
    assert area_under_curve(high, low) == 1.0
    assert area_under_curve(low, low) == 0.5
    assert area_under_curve(low, high) == 0.0


def test_metric_passes_on_its_better_side_and_is_undecided_without_target() -> None:
    assert Metric("x", 0.9, 0.85).passes is True
    assert Metric("x", 0.9, 0.85, higher_is_better=False).passes is False
    assert Metric("x", 0.9, None).passes is None
