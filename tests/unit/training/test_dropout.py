"""Dropout by row: the same masks for any split of a batch, others for every row and layer."""

from __future__ import annotations

import copy
import csv

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from dreambooth_core.training.dropout import RowDropout, Rows, key_by_rows
from dreambooth_core.training.optim.ddp import WEIGHTS, DdpStrategy
from dreambooth_core.training.trainable import load_trainable_model
from dreambooth_core.training.trainer import Trainer
from tests.unit.training import tiny

DROPPING = {"method": "lora", "lora": {**tiny.LORA, "lora_dropout": 0.3}}


def _mask(*keys: tuple[bool, int], layer: str = "a", seed: int = 0) -> torch.Tensor:
    dropout = RowDropout(0.3, layer=layer, seed=seed, rows=Rows(keys))
    return dropout(torch.ones(len(keys), 50, 40))


def test_row_mask_is_independent_of_its_batch():
    batch = _mask((False, 7), (True, 7), (False, 8))
    for row, key in enumerate([(False, 7), (True, 7), (False, 8)]):
        assert torch.equal(batch[row], _mask(key)[0])


@pytest.mark.parametrize(
    "other",
    [
        {"keys": (False, 8)},
        {"keys": (True, 7)},
        {"keys": (False, 7), "layer": "b"},
        {"keys": (False, 7), "seed": 1},
    ],
    ids=["position", "role", "layer", "seed"],
)
def test_another_key_has_another_mask(other):
    """Of 2,000 numbers two masks share about 0.3^2 + 0.7^2."""
    keys = other.pop("keys")
    alike = (_mask((False, 7)) == _mask(keys, **other)).float().mean().item()
    assert abs(alike - 0.58) < 0.06


def test_a_mask_drops_its_part_and_keeps_the_mean():
    dropped = torch.cat([_mask((False, position)) for position in range(20)])
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert abs((dropped == 0).float().mean().item() - 0.3) < 0.012  # 5 sigma of 40,000 draws


def test_inactive_dropout_is_not_replaced():
    model = nn.Sequential(nn.Dropout(0.0), nn.Sequential(nn.Dropout(0.5)))
    key_by_rows(model, seed=0)
    assert type(model[0]) is nn.Dropout
    assert isinstance(model[1][0], RowDropout)
    x = torch.ones(2, 3)
    assert torch.equal(model.eval()(x), x)


@pytest.mark.parametrize(
    "networks", [{}, {"train_text_encoder": True, "gradient_checkpointing": True}]
)
def test_micro_steps_with_dropout_equal_one_large_batch(networks, tmp_path, tiny_sd):
    one, two = (
        tiny.make_job(tmp_path, tiny_sd, name=str(size), train_batch_size=size,
                      gradient_accumulation_steps=4 // size, max_train_steps=2,
                      adam_epsilon=1e-3, **DROPPING, **networks)
        for size in (4, 2)
    )  # fmt: skip
    tables, weights = [], []
    for job in (one, two):
        tiny.train(job)
        tables.append(list(csv.DictReader((job.out_dir / "metrics.csv").open())))
        weights.append(load_file(job.resume_dir / "step-00000002" / WEIGHTS))
    for first, second in zip(*tables, strict=True):
        assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-6)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-6, rtol=0)


def test_dropout_of_the_adapters_is_felt_in_training(tmp_path, tiny_sd):
    """From the second update on: before it the second factor is zero."""
    losses = []
    for name, rate in (("with", 0.3), ("without", 0.0)):
        lora = {**tiny.LORA, "lora_dropout": rate}
        job = tiny.make_job(
            tmp_path, tiny_sd, name=name, method="lora", lora=lora, max_train_steps=2
        )
        sink = tiny.ListSink()
        tiny.train(job, sink=sink)
        losses.append([values["loss"] for _, values in sink.kept])
    assert losses[0] != losses[1]


def test_networks_with_keyed_dropout_can_be_copied():
    model = nn.Sequential(nn.Dropout(0.5))
    rows = key_by_rows(model, seed=0)
    rows.keys = [(False, 1)]
    x = torch.ones(1, 1000)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_attention_dropout_is_keyed_by_step_and_micro_step(tmp_path, tiny_sd):
    """As a CLIP with `attention_dropout` has it. Rows that are always the same show the masks."""
    job = tiny.make_job(
        tmp_path, tiny_sd, train_text_encoder=True, train_batch_size=1,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    model = load_trainable_model(job, device=torch.device("cpu"))
    for module in model.denoiser.text_encoders[0].modules():
        if hasattr(module, "k_proj"):
            module.dropout = 0.5
    accelerator = Accelerator(cpu=True)
    updates = DdpStrategy(model, accelerator=accelerator, settings=job.train, state=None)
    trainer = Trainer(updates, rows_at=lambda positions: tiny.rows_at([0]))
    errors = {}
    for name, step in {"first": 0, "again": 0, "second": 1}.items():
        reports = trainer.accumulate(step, stop=False).micro_steps
        errors[name] = [report.error_B.tolist() for report in reports]
    assert errors["first"] == errors["again"]
    assert len({str(micro) for name in ("first", "second") for micro in errors[name]}) == 4
