"""DDP, DeepSpeed and FSDP2 on the CPU: the losses of one process, exact resume, whole checkpoints.

DeepSpeed compiles its parts at first use: minutes once, then they are kept in the user's cache.
"""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from dreambooth_core import files
from dreambooth_core.environment import library_defaults
from dreambooth_core.errors import StageError
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.launch.launcher import run_trainer
from tests.unit.training import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TWO = {"num_processes": 2, "train_batch_size": 1, "gradient_accumulation_steps": 2}
KINDS: dict[str, dict[str, Any]] = {
    "DDP": TWO,
    "DeepSpeed": {"accelerate_config": "deepspeed-two-cpus", **TWO},
    "FSDP2": {"accelerate_config": "fsdp2-two-cpus", **TWO},
}
SPLIT = ["DeepSpeed", "FSDP2"]


@pytest.fixture(autouse=True)
def _compiled_parts_are_kept(monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", library_defaults()["TORCH_EXTENSIONS_DIR"])


def _losses(job: TrainJob) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((job.out_dir / "metrics.csv").open())]


def _distance(one: Path, other: Path) -> float:
    """Largest difference of a number in two files of weights."""
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.mark.parametrize("kind", SPLIT)
def test_split_training_has_the_losses_and_weights_of_one_process(kind, tmp_path, tiny_sd):
    plain = tiny.make_job(tmp_path, tiny_sd, name="plain", train_batch_size=4)
    tiny.train(plain)
    split = tiny.make_job(tmp_path, tiny_sd, name="split", **KINDS[kind])
    assert run_trainer(split, grace_s=10).how == "done"
    assert _losses(split) == pytest.approx(_losses(plain), rel=1e-5)
    UNet2DConditionModel.from_pretrained(split.out_dir / "checkpoint-6" / "unet")
    weights = "checkpoint-6/unet/diffusion_pytorch_model.safetensors"
    assert _distance(split.out_dir / weights, plain.out_dir / weights) < 1e-4


NETWORKS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "SD with its text encoder": ("tiny_sd", {"train_text_encoder": True}, ["unet", "text_encoder"]),
    "SDXL": ("tiny_sdxl", {}, ["unet"]),
}


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("kind", SPLIT)
def test_split_training_equals_one_process(kind, networks, tmp_path, request):
    fixture, settings, parts = NETWORKS[networks]
    base: Path = request.getfixturevalue(fixture)
    plain = tiny.make_job(tmp_path, base, name="plain", **{**settings, "train_batch_size": 4})
    tiny.train(plain)
    split = tiny.make_job(tmp_path, base, name="split", **settings, **KINDS[kind])
    assert run_trainer(split, grace_s=10).how == "done"
    assert _losses(split) == pytest.approx(_losses(plain), rel=1e-5)
    published = [
        next((split.out_dir / "checkpoint-6" / part).glob("*.safetensors")) for part in parts
    ]
    assert [path.parent.name for path in published] == parts
    for path in published:
        assert _distance(path, plain.out_dir / path.relative_to(split.out_dir)) < 1e-4


@pytest.mark.parametrize("kind", SPLIT)
def test_a_split_adapter_is_published_whole_and_loads(kind, tmp_path, tiny_sd):
    adapter = {"method": "lora", "lora": tiny.LORA, "adam_epsilon": 1e-6}
    plain = tiny.make_job(tmp_path, tiny_sd, name="plain", **{**adapter, "train_batch_size": 4})
    tiny.train(plain)
    split = tiny.make_job(tmp_path, tiny_sd, name="split", **adapter, **KINDS[kind])
    assert run_trainer(split, grace_s=10).how == "done"
    assert _losses(split) == pytest.approx(_losses(plain), rel=1e-5)
    weights = "checkpoint-6/pytorch_lora_weights.safetensors"
    assert _distance(split.out_dir / weights, plain.out_dir / weights) < 1e-4
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.load_lora_weights(split.out_dir / "checkpoint-6")


@pytest.mark.parametrize("kind", KINDS)
def test_two_resumed_processes_equal_the_uninterrupted_run(kind, tmp_path, tiny_sd):
    whole = tiny.make_job(tmp_path, tiny_sd, name="whole", **KINDS[kind])
    assert run_trainer(whole, grace_s=10).how == "done"
    # the second process dies in the fifth update, after the state of step 3
    killed = tiny.make_job(tmp_path, tiny_sd, tracking={"die_at": "17"}, **KINDS[kind])
    with pytest.raises(StageError):
        run_trainer(killed, grace_s=5)
    assert sorted(p.name for p in killed.resume_dir.glob("step-*")) == ["step-00000003"]
    again = tiny.make_job(tmp_path, tiny_sd, **KINDS[kind])
    assert run_trainer(again, grace_s=10).how == "done"
    assert files.tree_hashes(again.out_dir) == files.tree_hashes(whole.out_dir)
    assert tiny.updates(again) == [1, 2, 3, 4, 4, 5, 6]


def test_deepspeed_in_bf16_publishes_fp32_and_resumes(tmp_path, tiny_sd):
    names = ("whole", "broken")
    whole, broken = (
        _alone_in_bf16(tiny.make_job(tmp_path, tiny_sd, name=n, **_BF16)) for n in names
    )
    assert run_trainer(whole, grace_s=10).how == "done"
    seen: list[int] = []

    def should_stop() -> bool:
        seen.extend(tiny.updates(broken))
        return 2 in seen

    assert run_trainer(broken, grace_s=30, should_stop=should_stop).how == "stopped"
    assert run_trainer(broken, grace_s=10).how == "done"
    assert files.tree_hashes(broken.out_dir) == files.tree_hashes(whole.out_dir)
    weights = load_file(
        whole.out_dir / "checkpoint-6" / "unet" / "diffusion_pytorch_model.safetensors"
    )
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    # not numbers of bf16 written in fp32: the copies that the updates are made on
    bias = weights["conv_in.bias"]
    assert not torch.equal(bias, bias.to(torch.bfloat16).to(torch.float32))


_BF16 = {"accelerate_config": "deepspeed-two-cpus", "num_processes": 2}


def _alone_in_bf16(job: TrainJob) -> TrainJob:
    assert job.launch is not None
    config = {**(job.launch.deepspeed or {}), "bf16": {"enabled": True}}
    return job.model_copy(
        update={
            "train": job.train.model_copy(update={"num_processes": 1, "mixed_precision": "bf16"}),
            "launch": job.launch.model_copy(update={"deepspeed": config}),
            "tracking": {"slow_s": "0.3"},
        }
    )


@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_number_on_one_process_stops_both(kind, tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, tracking={"nan_at": "17"}, **KINDS[kind])
    with pytest.raises(StageError, match=r"step 5 has a non-finite loss") as caught:
        run_trainer(job, grace_s=10)
    assert "instance/1.png at timestep" in str(caught.value)
    assert sorted(p.name for p in job.resume_dir.glob("step-*")) == ["step-00000003"]
