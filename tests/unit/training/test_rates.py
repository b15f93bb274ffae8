"""What an update really does with the schedule, the rates of the groups, and the clipped norm."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dreambooth_core.training.distributed import make_strategy
from dreambooth_core.training.optim.ddp import OPTIMIZER
from dreambooth_core.training.trainable import load_trainable_model
from dreambooth_core.training.trainer import Trainer
from tests.unit.training import tiny
from tests.unit.training.tiny import BF16, FUSED

PER_PARAMETER: dict[str, dict[str, Any]] = {
    "8-bit AdamW": {"use_8bit_adam": True},
    "Adafactor": {"optimizer": "adafactor"},
    "AdamW, bf16": BF16,
    "Adafactor, bf16": {"optimizer": "adafactor", **BF16},
}
KINDS = {
    "AdamW": {},
    **PER_PARAMETER,
    "in the backward pass": FUSED,
    "8-bit, in the backward pass": {"use_8bit_adam": True, **FUSED},
}
STOP = 4


class Moves:
    """Updates whose gradients are all 1: every optimizer then moves each number by the rate."""

    def __init__(self, tmp_path, base, **settings: Any) -> None:
        job = tiny.make_job(
            tmp_path, base, train_text_encoder=True, text_encoder_stop_step=STOP,
            adam_weight_decay=0.0, adam_epsilon=1e-12, **settings,
        )  # fmt: skip
        model = load_trainable_model(job, device=torch.device("cpu"))
        accelerator = Accelerator(cpu=True, mixed_precision=job.train.mixed_precision)
        for parameter in model.trainable.values():
            parameter.register_hook(torch.ones_like)
        updates = make_strategy(model, accelerator=accelerator, settings=job.train, state=None)
        self._groups = model.groups
        self._trainer = Trainer(updates, rows_at=tiny.open_rows(job))

    def of(self, step: int) -> list[float]:
        """The mean step of each network's numbers in the update after `step`."""
        before = [self._numbers(group) for group in self._groups]
        self._trainer.apply(self._trainer.accumulate(step, stop=False))
        self._trainer.clear_gradients()
        after = [self._numbers(group) for group in self._groups]
        return [(b - a).mean().item() for b, a in zip(before, after, strict=True)]

    @staticmethod
    def _numbers(group) -> torch.Tensor:
        return torch.cat([p.detach().double().flatten() for p in group.parameters.values()])


@pytest.mark.parametrize("kind", KINDS)
def test_each_network_follows_its_own_learning_rate(kind, tmp_path, tiny_sd):
    """Linear, 2 of 8 updates of warm-up; the text encoder rests from update 5 on."""
    settings = {"max_grad_norm": None, **KINDS[kind]}
    moves = Moves(
        tmp_path, tiny_sd, max_train_steps=8, lr_scheduler="linear", lr_warmup_steps=2,
        learning_rate=2e-3, text_encoder_lr=5e-4, **settings,
    )  # fmt: skip
    for step, part in enumerate([0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]):
        expected = [2e-3 * part, 5e-4 * part if step < STOP else 0.0]
        assert moves.of(step) == pytest.approx(expected, rel=0.03, abs=1e-9), step


@pytest.mark.parametrize("kind", PER_PARAMETER)
def test_clipping_reaches_the_state_of_every_optimizer(kind, tmp_path, tiny_sd):
    """After one update a first moment is as the gradient, Adafactor's second as its square."""
    sizes, norms = {}, {}
    for name, max_grad_norm in (("clipped", 0.5), ("free", None)):
        job = tiny.make_job(
            tmp_path, tiny_sd, name=name, max_train_steps=1, max_grad_norm=max_grad_norm,
            **PER_PARAMETER[kind],
        )  # fmt: skip
        tiny.train(job)
        tensors = load_file(job.resume_dir / "step-00000001" / OPTIMIZER)
        bias = {n.split("|")[1]: t for n, t in tensors.items() if n.startswith("unet.conv_out.b")}
        first = bias.get("exp_avg", bias.get("state1"))
        size = bias["exp_avg_sq"].sqrt() if first is None else first.abs()
        sizes[name] = size.double().sum().item()
        (row,) = csv.DictReader((job.out_dir / "metrics.csv").open())
        norms[name] = float(row["grad_norm"])
    assert norms["clipped"] == norms["free"] > 1
    assert sizes["clipped"] / sizes["free"] == pytest.approx(0.5 / norms["free"], rel=0.01)


@pytest.mark.parametrize("kind", [{}, FUSED], ids=["apart", "in the backward pass"])
def test_the_moments_of_a_text_encoder_that_rests_stay(kind, tmp_path, tiny_sd):
    """An update of rate 0 would move no weight, but go on counting and averaging."""
    job = tiny.make_job(
        tmp_path, tiny_sd, train_text_encoder=True, text_encoder_stop_step=1,
        max_train_steps=2, checkpointing_steps=1, **kind,
    )  # fmt: skip
    tiny.train(job)
    first, second = (load_file(job.resume_dir / f"step-0000000{n}" / OPTIMIZER) for n in (1, 2))
    same = {name.partition(".")[0]: True for name in first}
    for name, moments in first.items():
        same[name.partition(".")[0]] &= torch.equal(moments, second[name])
    assert same == {"unet": False, "text_encoder": True}
