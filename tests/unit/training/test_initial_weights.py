"""A training that starts from the weights of another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_core.errors import SettingsError
from dreambooth_core.models.initial_weights import load_initial_weights
from dreambooth_core.models.lora import LORA_FILE
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.trainable import load_trainable_model
from tests.unit.training import tiny

CPU = torch.device("cpu")
KINDS = {"full": {}, "lora": {"method": "lora", "lora": tiny.LORA}}
FILES = {"full": "unet/diffusion_pytorch_model.safetensors", "lora": LORA_FILE}


def continued(job: TrainJob, source: TrainJob) -> TrainJob:
    """The job, started from the last checkpoint of `source`."""
    return job.model_copy(update={"init_dir": source.out_dir / "checkpoint-6"})


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_with_the_bits_of_the_source(
    tmp_path: Path, tiny_sd: Path, kind: str
) -> None:
    source = tiny.make_job(tmp_path, tiny_sd, name="source", **KINDS[kind])
    tiny.train(source)
    job = continued(tiny.make_job(tmp_path, tiny_sd, **KINDS[kind]), source)
    load_trainable_model(job, device=CPU).write(tmp_path / "written")
    saved = load_file(source.out_dir / "checkpoint-6" / FILES[kind])
    start = load_file(tmp_path / "written" / FILES[kind])
    assert start.keys() == saved.keys()
    assert all(torch.equal(start[name], saved[name]) for name in saved)


@pytest.mark.parametrize("kind", KINDS)
def test_continued_training_resumes_to_the_same_bytes(
    tmp_path: Path, tiny_sd: Path, kind: str
) -> None:
    source = tiny.make_job(tmp_path, tiny_sd, name="source", **KINDS[kind])
    tiny.train(source)
    whole = continued(tiny.make_job(tmp_path, tiny_sd, name="whole", **KINDS[kind]), source)
    tiny.train(whole)
    stopped = continued(tiny.make_job(tmp_path, tiny_sd, name="stopped", **KINDS[kind]), source)
    tiny.train(stopped, should_stop=tiny.stop_after(3))
    tiny.train(stopped)
    last = f"checkpoint-6/{FILES[kind]}"
    assert (whole.out_dir / last).read_bytes() == (stopped.out_dir / last).read_bytes()
    assert (whole.out_dir / last).read_bytes() != (source.out_dir / last).read_bytes()


def test_adapters_of_another_rank_are_refused_with_both_ranks(
    tmp_path: Path, tiny_sd: Path
) -> None:
    source = tiny.make_job(tmp_path, tiny_sd, name="source", **KINDS["lora"])
    tiny.train(source)
    wider = {"method": "lora", "lora": {**tiny.LORA, "rank": 8}}
    job = continued(tiny.make_job(tmp_path, tiny_sd, **wider), source)
    with pytest.raises(SettingsError, match=r"train.init_from: .*rank 4, lora_alpha 8, .*to_q"):
        load_trainable_model(job, device=CPU)


def test_weights_of_another_base_model_are_refused(tiny_sd: Path, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    settings = tiny.make_job(tmp_path, tiny_sd).train
    with pytest.raises(SettingsError, match="do not fit the unet of the base model"):
        load_initial_weights({"unet": model}, tiny_sd, settings)
