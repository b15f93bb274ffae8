"""What the first updates must move, and how a run ends or speaks where they do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dreambooth_core.errors import StageError
from dreambooth_core.models import denoiser
from dreambooth_core.models.text import TextEmbedding
from dreambooth_core.training.optim.ddp import DdpStrategy
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
def test_a_text_encoder_that_the_loss_does_not_depend_on_stops_the_run(
    method, tmp_path, tiny_sd, monkeypatch
):
    """Weight decay alone moves its weights, so they look trained."""
    real = denoiser.encode

    def encode(*args, **kwargs):
        text, pooled = real(*args, **kwargs)
        return TextEmbedding(text.detach() + 0 * text, pooled)

    monkeypatch.setattr(denoiser, "encode", encode)
    job = tiny.make_job(tmp_path, tiny_sd, train_text_encoder=True, **method)
    with pytest.raises(StageError, match="gradients of the whole text_encoder are zero"):
        tiny.train(job)
    assert tiny.executed(job) == [1]
    assert not list(job.resume_dir.glob("step-*"))


@pytest.mark.parametrize(("warmup", "last"), [(0, 2), (3, 4)])
def test_an_adapter_whose_first_factor_never_gets_a_gradient_stops_the_run_after_the_warm_up(
    warmup, last, tmp_path, tiny_sd, monkeypatch
):
    _zero_gradients(monkeypatch, lambda name: name.startswith("unet.") and ".lora_A." in name)
    job = tiny.make_job(
        tmp_path, tiny_sd, train_text_encoder=True, checkpointing_steps=6,
        lr_scheduler="constant_with_warmup", lr_warmup_steps=warmup, **LORA,
    )  # fmt: skip
    with pytest.raises(StageError, match="gradients of every unet lora_A are zero in a second"):
        tiny.train(job)
    assert tiny.executed(job) == list(range(1, last + 1))


def test_a_single_tensor_without_a_gradient_is_told_and_the_run_goes_on(
    tmp_path, tiny_sd, monkeypatch, capsys
):
    _zero_gradients(monkeypatch, lambda name: name == "unet.conv_in.bias")
    assert tiny.train(tiny.make_job(tmp_path, tiny_sd)).how == "done"
    notes = [line for line in capsys.readouterr().out.splitlines() if "note" in line]
    assert notes == ["note: gradients of zero in two updates: unet.conv_in.bias"]


def test_an_adapters_factor_with_a_gradient_that_does_not_move_is_named(
    tmp_path, tiny_sd, monkeypatch
):
    real = DdpStrategy.apply

    def apply(self, loss):
        name, stuck = next((n, p) for n, p in self.model.trainable.items() if ".lora_A." in n)
        before = stuck.detach().clone()
        applied = real(self, loss)
        stuck.data.copy_(before)
        names.append(name)
        return applied

    names: list[str] = []
    monkeypatch.setattr(DdpStrategy, "apply", apply)
    job = tiny.make_job(tmp_path, tiny_sd, **LORA)
    with pytest.raises(StageError, match="have a gradient and are not moved by it") as caught:
        tiny.train(job)
    assert f"{names[0]}; found: 1 tensors" in str(caught.value)
    assert tiny.executed(job) == [1, 2]


def test_a_text_encoder_that_rests_at_the_second_look_is_left_alone(tmp_path, tiny_sd, capsys):
    job = tiny.make_job(
        tmp_path, tiny_sd, train_text_encoder=True, text_encoder_stop_step=1, **LORA
    )
    assert tiny.train(job).how == "done"
    assert "note" not in capsys.readouterr().out


def test_what_moved_in_the_first_update_is_not_looked_at_again(tmp_path, tiny_sd, monkeypatch):
    """Sums and gradients are read from the device: twice in a run, then never."""
    looked: list[int] = []
    real = DdpStrategy.gradient

    def gradient(self, parameter):
        looked.append(self._step)
        return real(self, parameter)

    monkeypatch.setattr(DdpStrategy, "gradient", gradient)
    job = tiny.make_job(tmp_path, tiny_sd, **LORA)
    tiny.train(job)
    num_tensors = looked.count(1)
    assert looked == [1] * num_tensors + [2] * (num_tensors // 2)
