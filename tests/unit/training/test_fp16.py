"""fp16 with its scaler, on a CPU: torch has both there, and accelerate is told so by hand."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator

from dreambooth_core import files
from dreambooth_core.errors import StageError
from dreambooth_core.training import worker
from dreambooth_core.training.optim.ddp import DdpStrategy
from tests.unit.training import tiny

TOO_LARGE = 2.0**24
"""A scale at which gradients of the tiny model overflow; about 2^18 is the largest that fits."""


@pytest.fixture
def scaler(monkeypatch: pytest.MonkeyPatch):
    """Begin runs in fp16 with a scaler of such a scale; the last one made."""
    made: list[torch.amp.GradScaler] = []

    def begin_at(scale: float, *, growth_interval: int = 2000) -> list[torch.amp.GradScaler]:
        def start(_job: object) -> Accelerator:
            accelerator = Accelerator(cpu=True)
            made.append(
                torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
            )
            accelerator.scaler, accelerator.native_amp = made[-1], True
            accelerator.state._mixed_precision = "fp16"
            return accelerator

        monkeypatch.setattr(worker, "start_accelerator", start)
        return made

    return begin_at


@pytest.fixture
def break_gradients(monkeypatch: pytest.MonkeyPatch):
    """Make the gradients NaN from an update on, at any scale."""

    def from_update(first: int) -> None:
        own = DdpStrategy.begin

        def begin(self: DdpStrategy, step: int, *, learning_rates: Sequence[float]) -> None:
            own(self, step, learning_rates=learning_rates)
            if step == first:
                weight = next(iter(self.model.trainable.values()))
                weight.register_hook(lambda gradient: gradient * torch.nan)

        monkeypatch.setattr(DdpStrategy, "begin", begin)

    return from_update


@pytest.mark.parametrize("recipe", [{}, {"optimizer": "adafactor"}])
def test_scale_overflow_skips_one_update_and_training_continues(tmp_path, tiny_sd, scaler, recipe):
    made = scaler(TOO_LARGE, growth_interval=4)
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=16, **recipe)
    assert tiny.train(job).how == "done"
    assert 2**16 <= made[-1].get_scale() <= 2**20


def test_gradients_are_reported_and_clipped_without_loss_scaling(tmp_path, tiny_sd, scaler):
    norms = []
    for name in ("fp32", "fp16"):
        job = tiny.make_job(tmp_path, tiny_sd, name=name, max_train_steps=1)
        assert tiny.train(job).how == "done"
        with (job.out_dir / "metrics.csv").open() as table:
            norms.append(float(next(csv.DictReader(table))["grad_norm"]))
        scaler(2.0**12)  # for the second run
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_resumed_fp16_run_equals_the_uninterrupted_one(tmp_path, tiny_sd, scaler):
    scaler(TOO_LARGE, growth_interval=4)
    recipe = {"max_train_steps": 16, "checkpointing_steps": 16, "ema_decay": 0.5,
              "train_text_encoder": True, "text_encoder_stop_step": 5}  # fmt: skip
    whole, stopped = (tiny.make_job(tmp_path, tiny_sd, name=n, **recipe) for n in ("a", "b"))
    assert tiny.train(whole).how == "done"
    assert tiny.train(stopped, should_stop=tiny.stop_after(6)).how == "stopped"
    assert tiny.train(stopped).how == "done"
    assert files.tree_hashes(whole.out_dir) == files.tree_hashes(stopped.out_dir)


@pytest.mark.parametrize("first", [1, 4])
def test_gradient_non_finite_at_any_scale_stops_the_run(
    tmp_path, tiny_sd, scaler, break_gradients, first
):
    scaler(2.0**16)
    break_gradients(first)
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=8, checkpointing_steps=8)
    with pytest.raises(StageError, match="step 8 has a non-finite gradient"):
        tiny.train(job)


def test_thirty_consecutive_skipped_updates_stop_the_run(
    tmp_path, tiny_sd, scaler, break_gradients
):
    scaler(2.0**16)
    break_gradients(1)
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=100, checkpointing_steps=100)
    with pytest.raises(StageError, match="step 31 has a non-finite gradient"):
        tiny.train(job)
