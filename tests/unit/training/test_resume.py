"""Exact resume: the same bytes, however often and wherever a run was interrupted."""

import json
import shutil
from pathlib import Path

import pytest

from dreambooth_core import files
from dreambooth_core.training.checkpoints import resume_state
from dreambooth_core.training.checkpoints.published import finished_run
from dreambooth_core.training.job import TrainJob
from tests.unit.training import tiny

VARIANTS = {
    "full": {},
    "accumulation and cosine": {
        "gradient_accumulation_steps": 2,
        "train_batch_size": 1,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
    },
    "adapter with dropout": {"method": "lora", "lora": {**tiny.LORA, "lora_dropout": 0.3}},
    "text encoder, which rests after step 3": {
        "train_text_encoder": True,
        "text_encoder_lr": 1e-4,
        "text_encoder_stop_step": 3,
    },
    "adapters on both, with dropout, accumulation, average": {
        "method": "lora",
        "lora": {**tiny.LORA, "lora_dropout": 0.3},
        "train_text_encoder": True,
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.5,
    },
    "average of all, checkpointing": {
        "train_text_encoder": True,
        "gradient_checkpointing": True,
        "ema_decay": 0.9,
    },
    "bf16, checkpointing, min-SNR, offset": {
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "snr_gamma": 5.0,
        "offset_noise": 0.1,
    },
}


def _final_state(job: TrainJob) -> dict[str, str]:
    return files.tree_hashes(job.resume_dir / f"step-{job.train.max_train_steps:08d}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_run_stopped_at_any_step_equals_the_uninterrupted_one(variant, tmp_path, tiny_sd):
    settings = VARIANTS[variant]
    whole = tiny.make_job(tmp_path, tiny_sd, name="whole", **settings)
    tiny.train(whole)
    broken = tiny.make_job(tmp_path, tiny_sd, name="broken", **settings)
    for step in (1, 2, 4, 5):
        ended = tiny.train(broken, should_stop=tiny.stop_after(step - _done(broken)))
        assert (ended.how, ended.step) == ("stopped", step)
    assert tiny.train(broken).how == "done"
    assert files.tree_hashes(broken.out_dir) == files.tree_hashes(whole.out_dir)
    assert _final_state(broken) == _final_state(whole)
    assert tiny.updates(broken) == [1, 2, 3, 4, 5, 6]


def _done(job: TrainJob) -> int:
    return len(tiny.updates(job))


def test_extended_run_equals_one_long_run(tmp_path, tiny_sd):
    tiny.train(tiny.make_job(tmp_path, tiny_sd, max_train_steps=4, checkpointing_steps=4))
    longer = tiny.make_job(tmp_path, tiny_sd, max_train_steps=8, checkpointing_steps=4)
    tiny.train(longer)
    at_once = tiny.make_job(
        tmp_path, tiny_sd, name="at-once", max_train_steps=8, checkpointing_steps=4
    )
    tiny.train(at_once)
    assert files.tree_hashes(longer.out_dir) == files.tree_hashes(at_once.out_dir)
    assert tiny.updates(longer) == list(range(1, 9))


def test_fewer_steps_publish_existing_checkpoints_without_training(tmp_path, tiny_sd):
    longer = tiny.make_job(tmp_path, tiny_sd, max_train_steps=6, checkpointing_steps=2)
    tiny.train(longer)
    shorter = tiny.make_job(tmp_path, tiny_sd, max_train_steps=4, checkpointing_steps=2)
    tiny.train(shorter)
    run = finished_run(shorter)
    assert run is not None
    assert [checkpoint.name for checkpoint in run.checkpoints] == ["checkpoint-2", "checkpoint-4"]
    assert (shorter.out_dir / "metrics.csv").read_text().splitlines()[-1].startswith("4,")
    assert len(tiny.updates(shorter)) == 6


def test_other_checkpointing_steps_resume_before_the_first_missing_checkpoint(tmp_path, tiny_sd):
    tiny.train(tiny.make_job(tmp_path, tiny_sd, max_train_steps=6, checkpointing_steps=3))
    other = tiny.make_job(tmp_path, tiny_sd, max_train_steps=6, checkpointing_steps=4)
    tiny.train(other)
    fresh = tiny.make_job(tmp_path, tiny_sd, name="fresh", max_train_steps=6, checkpointing_steps=4)
    tiny.train(fresh)
    assert files.tree_hashes(other.out_dir) == files.tree_hashes(fresh.out_dir)
    # the state of step 3 is the newest before the missing checkpoint-4
    assert tiny.updates(other) == [1, 2, 3, 4, 5, 6, 4, 5, 6]


def test_states_beyond_the_start_do_not_push_new_ones_out(tmp_path, tiny_sd):
    first = tiny.make_job(
        tmp_path, tiny_sd, max_train_steps=6, checkpointing_steps=3, checkpoints_total_limit=1
    )
    tiny.train(first)
    second = tiny.make_job(
        tmp_path, tiny_sd, max_train_steps=6, checkpointing_steps=2, checkpoints_total_limit=1
    )
    tiny.train(second, should_stop=tiny.stop_after(3))
    found = resume_state.newest_state(second.resume_dir, fingerprint=second.fingerprint, at_most=5)
    assert found is not None
    assert found.step == 3
    tiny.train(second)
    assert tiny.updates(second) == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]


def test_only_the_newest_states_are_kept_and_every_checkpoint(tmp_path, tiny_sd):
    job = tiny.make_job(
        tmp_path, tiny_sd, max_train_steps=6, checkpointing_steps=2, checkpoints_total_limit=2
    )
    tiny.train(job)
    assert sorted(p.name for p in job.resume_dir.iterdir()) == ["step-00000004", "step-00000006"]
    names = sorted(p.name for p in job.out_dir.glob("checkpoint-*"))
    assert names == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def _truncate(state: Path) -> None:
    whole = (state / "optimizer.safetensors").read_bytes()
    (state / "optimizer.safetensors").write_bytes(whole[: len(whole) // 2])


def _flip_a_bit(state: Path) -> None:
    data = bytearray((state / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (state / "weights.safetensors").write_bytes(data)


def _lose_the_record(state: Path) -> None:
    (state / "record.json").unlink()


def _lose_the_metrics(state: Path) -> None:
    (state / "metrics.csv").unlink()


def _claim_another_run(state: Path) -> None:
    record = json.loads((state / "record.json").read_text())
    (state / "record.json").write_text(json.dumps({**record, "fingerprint": "e" * 64}))


@pytest.mark.parametrize(
    "damage",
    [_truncate, _flip_a_bit, _lose_the_record, _lose_the_metrics, _claim_another_run],
)
def test_damaged_state_is_skipped_with_the_same_result(damage, tmp_path, tiny_sd):
    whole = tiny.make_job(tmp_path, tiny_sd, name="whole")
    tiny.train(whole)
    job = tiny.make_job(tmp_path, tiny_sd)
    tiny.train(job, should_stop=tiny.stop_after(5))
    damage(job.resume_dir / "step-00000005")
    # what a kill in the middle of a save leaves, and what was never a state
    (job.resume_dir / ".aside-step-00000006-x").mkdir()
    (job.resume_dir / "step-tmp").mkdir()
    tiny.train(job)
    assert tiny.updates(job) == [1, 2, 3, 4, 5, 4, 5, 6]
    assert files.tree_hashes(job.out_dir) == files.tree_hashes(whole.out_dir)


def test_a_damaged_checkpoint_is_made_again(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd)
    tiny.train(job)
    before = files.tree_hashes(job.out_dir)
    shutil.rmtree(job.out_dir)
    weights = job.checkpoints_dir / "checkpoint-3" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    tiny.train(job)
    assert files.tree_hashes(job.out_dir) == before


def test_deleted_output_is_rebuilt_without_training(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd)
    tiny.train(job)
    before = files.tree_hashes(job.out_dir)
    shutil.rmtree(job.out_dir)
    assert finished_run(job) is None
    tiny.train(job)
    assert files.tree_hashes(job.out_dir) == before
    assert len(tiny.updates(job)) == 6
