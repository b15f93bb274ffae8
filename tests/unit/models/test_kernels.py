"""xFormers on demand, TF32 on demand."""

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch

from dreambooth_core.errors import SettingsError
from dreambooth_core.models import kernels
from tests.unit.training import tiny

CPU = torch.device("cpu")


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xFormers is here")
def test_missing_xformers_raises_and_suggests_sdpa(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, enable_xformers_memory_efficient_attention=True)
    with pytest.raises(SettingsError, match=r"not installed.*SDPA, needs no package") as caught:
        tiny.train(job)
    assert "train.enable_xformers_memory_efficient_attention: needs a GPU" in str(caught.value)
    assert caught.value.exit_code == 2


def test_with_xformers_but_without_a_gpu_it_is_refused_too(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    with pytest.raises(SettingsError, match=r"needs a GPU; found: device cpu.*SDPA"):
        kernels.use_xformers(None, device=CPU)


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_what_the_settings_say(allowed, tmp_path, tiny_sd):
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        tiny.train(tiny.make_job(tmp_path, tiny_sd, max_train_steps=1, allow_tf32=allowed))
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
