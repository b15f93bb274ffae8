"""Whole runs of the trainer with every optimizer, type of weights and way of updating."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_core import files
from dreambooth_core.errors import StageError
from dreambooth_core.training.checkpoints import resume_state
from dreambooth_core.training.optim import ddp
from tests.unit.training import tiny
from tests.unit.training.tiny import BF16, FUSED

RECIPES: dict[str, dict[str, Any]] = {
    "8-bit AdamW": {"use_8bit_adam": True},
    "Adafactor": {"optimizer": "adafactor"},
    "bf16 weights": BF16,
    "fused backward": FUSED,
    "the recipe for 6 GB": {
        "optimizer": "adafactor", **BF16, **FUSED, "gradient_checkpointing": True,
    },
    "8-bit AdamW, bf16, fused": {"use_8bit_adam": True, **BF16, **FUSED},
    "adapters, bf16, fused": {"method": "lora", "lora": tiny.LORA, **BF16, **FUSED},
}  # fmt: skip


def _losses(job) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((job.out_dir / "metrics.csv").open())]


@pytest.mark.parametrize("recipe", RECIPES)
def test_run_resumed_at_step_2_equals_the_uninterrupted_one(recipe, tmp_path, tiny_sd):
    settings = {**RECIPES[recipe], "max_train_steps": 4, "checkpointing_steps": 4}
    whole = tiny.make_job(tmp_path, tiny_sd, name="whole", **settings)
    tiny.train(whole)
    parts = tiny.make_job(tmp_path, tiny_sd, name="parts", **settings)
    assert tiny.train(parts, should_stop=tiny.stop_after(2)).how == "stopped"
    tiny.train(parts)
    assert tiny.updates(parts) == [1, 2, 3, 4]
    assert files.tree_hashes(parts.out_dir) == files.tree_hashes(whole.out_dir)
    states = [
        resume_state.newest_state(j.resume_dir, fingerprint=j.fingerprint) for j in (whole, parts)
    ]
    assert states[0] == states[1]
    assert all(torch.isfinite(torch.tensor(_losses(whole))))


def test_non_finite_fused_gradient_names_weight_and_recovery_point(tmp_path, tiny_sd, monkeypatch):
    job = tiny.make_job(tmp_path, tiny_sd, checkpointing_steps=2, **FUSED)
    spoil_gradient(monkeypatch, "unet.conv_out.bias", from_update=4)
    with pytest.raises(StageError, match="step 4 has a non-finite gradient") as caught:
        tiny.train(job)
    text = str(caught.value)
    assert "all parameters except unet.conv_out.bias; continue from the last checkpoint" in text
    assert "instance/2.png at timestep" in text
    state = resume_state.newest_state(job.resume_dir, fingerprint=job.fingerprint)
    assert state is not None
    assert state.step == 2


@pytest.mark.parametrize("recipe", ["8-bit AdamW", "bf16 weights", "the recipe for 6 GB"])
def test_a_non_finite_loss_changes_no_weight_under_any_optimizer(recipe, tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, checkpointing_steps=2, **RECIPES[recipe])

    with pytest.raises(
        StageError, match=r"step 4 has a non-finite loss; the update was not applied"
    ):
        tiny.train(job, rows=tiny.poisoned_at(6))  # the fourth update, with two rows a step
    state = resume_state.newest_state(job.resume_dir, fingerprint=job.fingerprint)
    assert state is not None
    assert state.step == 2


def test_bf16_weights_stay_bf16_and_tolerate_tiny_updates(tmp_path, tiny_sd):
    """At rate 1e-6 most norm weights (1.0, bits 0.0078 apart) stay; the run must not stop."""
    job = tiny.make_job(tmp_path, tiny_sd, learning_rate=1e-6, max_train_steps=1, **BF16)
    tiny.train(job)
    (path,) = (job.out_dir / "checkpoint-1" / "unet").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}


def test_a_bf16_weight_that_no_update_reaches_stops_the_run(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, learning_rate=1e-30, adam_weight_decay=0.0, **BF16)
    with pytest.raises(StageError, match=r"not moved by the first update"):
        tiny.train(job)


def test_norm_of_bf16_gradients_is_summed_in_fp32(tmp_path, tiny_sd, monkeypatch):
    """A sum in bf16 has two digits: the table showed 3.84375."""
    gradients: dict[str, torch.Tensor] = {}
    real = ddp.DdpStrategy.apply

    def apply(self, loss):
        gradients.update({n: p.grad.double() for n, p in self.model.trainable.items()})
        return real(self, loss)

    monkeypatch.setattr(ddp.DdpStrategy, "apply", apply)
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=1, **BF16)
    tiny.train(job)
    expected = sum(grad.square().sum().item() for grad in gradients.values()) ** 0.5
    (row,) = csv.DictReader((job.out_dir / "metrics.csv").open())
    assert float(row["grad_norm"]) == pytest.approx(expected, rel=1e-6)
    assert expected != torch.tensor(expected).bfloat16().item()


def spoil_gradient(monkeypatch: pytest.MonkeyPatch, name: str, *, from_update: int) -> None:
    """Make the gradient of a parameter NaN from an update on, as an overflow would."""
    from dreambooth_core.training.optim import fused_backward

    real = fused_backward.FusedBackwardStrategy.backward

    def backward(self, loss, *, last):
        if self._step == from_update:
            self.model.trainable[name].register_hook(lambda grad: grad * torch.nan)
        real(self, loss, last=last)

    monkeypatch.setattr(fused_backward.FusedBackwardStrategy, "backward", backward)
