"""Compiled blocks: the losses of plain ones, exact resume, a clear word where they cannot be."""

from __future__ import annotations

import shutil

import pytest
from pydantic import ValidationError

from dreambooth_core import files
from dreambooth_core.errors import SettingsError
from tests.unit.training import tiny


@pytest.mark.slow
# torch.compile looks at attributes that warn, and hides it from everyone but a strict filter
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change", [{}, {"method": "lora", "lora": tiny.LORA}], ids=["full", "lora"]
)
def test_compiled_blocks_have_the_losses_of_plain_ones_and_resume_to_the_byte(
    change, tmp_path, tiny_sd
):
    losses = {}
    for compiled in (False, True):
        sink = tiny.ListSink()
        job = tiny.make_job(
            tmp_path, tiny_sd, name=f"whole-{compiled}", compile_blocks=compiled, **change
        )
        assert tiny.train(job, sink=sink).how == "done"
        losses[compiled] = [values["loss"] for _, values in sink.kept]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)

    stopped = tiny.make_job(tmp_path, tiny_sd, name="stopped", compile_blocks=True, **change)
    assert tiny.train(stopped, should_stop=tiny.stop_after(3)).how == "stopped"
    assert tiny.train(stopped).how == "done"
    whole = files.tree_hashes(tmp_path / "whole-True" / "out")
    assert files.tree_hashes(stopped.out_dir) == whole


def test_without_a_compiler_the_run_is_refused_before_anything_is_trained(
    tmp_path, tiny_sd, monkeypatch
):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    job = tiny.make_job(tmp_path, tiny_sd, compile_blocks=True)
    with pytest.raises(SettingsError, match=r"compile_blocks is on.*C\+\+ compiler.*to false"):
        tiny.train(job)
    assert not job.executed_log.exists()


@pytest.mark.parametrize("name", ["deepspeed-two-cpus", "fsdp2-two-cpus"])
def test_compiled_blocks_are_refused_where_the_network_is_split(name, tmp_path, tiny_sd):
    with pytest.raises(ValidationError, match="compile_blocks was not proved under"):
        tiny.make_job(
            tmp_path, tiny_sd, compile_blocks=True, accelerate_config=name, num_processes=2
        )
