"""What the first update must move, and how a run ends if it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_core.errors import StageError
from dreambooth_core.models import denoiser
from dreambooth_core.models.text import TextEmbedding
from dreambooth_core.training.optim.ddp import WEIGHTS, DdpStrategy
from dreambooth_core.training.optim.per_parameter import PerParameter
from dreambooth_core.training.trainable import load_trainable_model
from tests.unit.training import tiny

LORA = {"method": "lora", "lora": tiny.LORA}


def _zero_gradients(monkeypatch: pytest.MonkeyPatch, is_meant: Callable[[str], bool]) -> None:
    """Let the backward pass give the meant parameters gradients that are all zero."""
    real = DdpStrategy.backward

    def backward(self, loss, *, last):
        real(self, loss, last=last)
        for name, parameter in self.model.trainable.items():
            if is_meant(name):
                parameter.grad.zero_()

    monkeypatch.setattr(DdpStrategy, "backward", backward)


@pytest.mark.parametrize("method", [{}, LORA], ids=["full", "lora"])
def test_text_encoder_that_the_loss_ignores_stops_the_run(method, tmp_path, tiny_sd, monkeypatch):
    """Weight decay alone moves its weights, so they look trained."""
    real = denoiser.encode

    def encode(*args, **kwargs):
        text, pooled = real(*args, **kwargs)
        return TextEmbedding(text.detach() + 0 * text, pooled)

    monkeypatch.setattr(denoiser, "encode", encode)
    job = tiny.make_job(tmp_path, tiny_sd, train_text_encoder=True, **method)
    with pytest.raises(StageError, match="gradients of the whole text_encoder are zero"):
        tiny.train(job)
    assert tiny.updates(job) == [1]
    assert not list(job.resume_dir.glob("step-*"))


@pytest.mark.parametrize("warmup", [0, 3])
def test_adapter_wired_to_nothing_stops_the_run_after_warmup(
    warmup, tmp_path, tiny_sd, monkeypatch
):
    _zero_gradients(monkeypatch, lambda name: name.startswith("unet."))
    job = tiny.make_job(
        tmp_path, tiny_sd, train_text_encoder=True, checkpointing_steps=6,
        lr_scheduler="constant_with_warmup", lr_warmup_steps=warmup, **LORA,
    )  # fmt: skip
    with pytest.raises(StageError, match="gradients of the whole unet are zero"):
        tiny.train(job)
    assert tiny.updates(job) == ([1] if warmup == 0 else [1, 2])


def test_single_tensor_without_a_gradient_does_not_stop_the_run(tmp_path, tiny_sd, monkeypatch):
    _zero_gradients(monkeypatch, lambda name: name == "unet.conv_in.bias")
    assert tiny.train(tiny.make_job(tmp_path, tiny_sd)).how == "done"


def test_unmoved_adapter_factor_with_a_gradient_is_named(tmp_path, tiny_sd, monkeypatch):
    real = DdpStrategy.apply

    def apply(self, loss):
        name, stuck = next((n, p) for n, p in self.model.trainable.items() if ".lora_B." in n)
        before = stuck.detach().clone()
        applied = real(self, loss)
        stuck.data.copy_(before)
        names.append(name)
        return applied

    names: list[str] = []
    monkeypatch.setattr(DdpStrategy, "apply", apply)
    job = tiny.make_job(tmp_path, tiny_sd, **LORA)
    with pytest.raises(StageError, match="were not moved by the first update") as caught:
        tiny.train(job)
    assert f"{names[0]}; found: 1 tensors" in str(caught.value)
    assert tiny.updates(job) == [1]


@pytest.mark.parametrize("recipe", [{}, LORA, tiny.FUSED, tiny.BF16, {**tiny.BF16, **tiny.FUSED}])
def test_two_updates_move_every_trained_tensor_of_every_recipe(recipe, tmp_path, tiny_sd):
    """What the check of the first update no longer proves at run time."""
    job = tiny.make_job(
        tmp_path, tiny_sd, train_text_encoder=True, max_train_steps=2, checkpointing_steps=2,
        **recipe,
    )  # fmt: skip
    before = load_trainable_model(job, device=torch.device("cpu")).trainable
    tiny.train(job)
    after = load_file(job.resume_dir / "step-00000002" / WEIGHTS)
    assert [name for name, value in after.items() if torch.equal(value, before[name])] == []


@pytest.mark.parametrize("recipe", [tiny.FUSED, {**tiny.BF16, **tiny.FUSED}])
def test_fused_backward_that_skips_its_updates_stops_the_run(
    recipe, tmp_path, tiny_sd, monkeypatch
):
    monkeypatch.setattr(PerParameter, "update", lambda *_args, **_options: None)
    with pytest.raises(StageError, match="were not moved by the first update"):
        tiny.train(tiny.make_job(tmp_path, tiny_sd, **recipe))


def test_parameters_are_checked_in_one_update_only(tmp_path, tiny_sd, monkeypatch):
    """Checksums and gradients are read from the device: once in a run."""
    checked: list[int] = []
    real = DdpStrategy.gradient

    def gradient(self, parameter):
        checked.append(self._step)
        return real(self, parameter)

    monkeypatch.setattr(DdpStrategy, "gradient", gradient)
    job = tiny.make_job(tmp_path, tiny_sd, **LORA)
    tiny.train(job)
    assert set(checked) == {1}
