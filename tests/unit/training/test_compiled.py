"""Compiled blocks: the losses of plain ones, exact resume, a clear word where they cannot be."""

from __future__ import annotations

import pytest
import torch._dynamo.utils
import torch._inductor.config

from dreambooth_core import files
from dreambooth_core.errors import SettingsError
from tests.unit.training import tiny

KINDS = {
    "full": {},
    "adapters, checkpointing": {
        "method": "lora",
        "lora": tiny.LORA,
        "gradient_checkpointing": True,
    },
    "bf16, updates in the backward pass, checkpointing": {
        "optimizer": "adafactor",
        "mixed_precision": "bf16",
        "weight_dtype": "bf16",
        "fused_backward": True,
        "max_grad_norm": None,
        "gradient_checkpointing": True,
    },
    "average of the weights": {"ema_decay": 0.9},
}


@pytest.mark.slow
# torch.compile looks at attributes that warn, and hides it from everyone but a strict filter
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_match_plain_losses_and_resume_exactly(kind, tmp_path, tiny_sd):
    losses, change = {}, KINDS[kind]
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        sink = tiny.ListSink()
        job = tiny.make_job(
            tmp_path, tiny_sd, name=f"whole-{compiled}", compile_blocks=compiled, **change
        )
        assert tiny.train(job, sink=sink).how == "done"
        losses[compiled] = [values["loss"] for _, values in sink.kept]
        frames = torch._dynamo.utils.counters["frames"]
        assert (frames["ok"] > 0) is compiled
        assert frames["ok"] == frames["total"]
    within = 1e-2 if change.get("weight_dtype") == "bf16" else 1e-5
    assert losses[True] == pytest.approx(losses[False], rel=within)

    stopped = tiny.make_job(tmp_path, tiny_sd, name="stopped", compile_blocks=True, **change)
    assert tiny.train(stopped, should_stop=tiny.stop_after(3)).how == "stopped"
    assert tiny.train(stopped).how == "done"
    whole = files.tree_hashes(tmp_path / "whole-True" / "out")
    assert files.tree_hashes(stopped.out_dir) == whole


def test_missing_compiler_is_refused_before_training(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, compile_blocks=True)
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with (
        without,
        pytest.raises(SettingsError, match=r"C\+\+ compiler.*turn compile_blocks off"),
    ):
        tiny.train(job)
    assert tiny.updates(job) == []


@pytest.mark.parametrize("name", ["deepspeed-two-cpus", "fsdp2-two-cpus"])
def test_compiled_blocks_are_refused_where_the_network_is_split(name, tmp_path, tiny_sd):
    with pytest.raises(SettingsError, match="compile_blocks is untested with"):
        tiny.make_job(
            tmp_path, tiny_sd, compile_blocks=True, accelerate_config=name, num_processes=2
        )
