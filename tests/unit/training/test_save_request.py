"""A save that a user asks for: from there the run resumes, and no byte of its results changes."""

from __future__ import annotations

import json

import pytest

from dreambooth_core import files
from dreambooth_core.errors import StageError
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.launch.launcher import run_trainer
from tests.unit.training import tiny


def asked(job: TrainJob) -> TrainJob:
    job.save_request.parent.mkdir(parents=True, exist_ok=True)
    job.save_request.touch()
    return job


def answer_of(job: TrainJob) -> int:
    assert not job.save_request.exists()
    return json.loads(job.save_request.with_suffix(".json").read_bytes())["step"]


@pytest.mark.parametrize("is_async", [False, True])
def test_requested_save_changes_no_byte_of_the_results(tmp_path, tiny_sd, is_async):
    whole = tiny.make_job(tmp_path, tiny_sd, name="whole")
    tiny.train(whole)
    job = tiny.make_job(tmp_path, tiny_sd, name="saved", async_checkpointing=is_async)
    assert tiny.train(asked(job)).how == "done"
    assert answer_of(job) == 1
    assert files.tree_hashes(job.out_dir) == files.tree_hashes(whole.out_dir)
    last = f"step-{job.train.max_train_steps:08d}"
    assert files.tree_hashes(job.resume_dir / last) == files.tree_hashes(whole.resume_dir / last)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [{}, {"num_processes": 2}])
def test_kill_after_a_requested_save_resumes_from_that_step(tmp_path, tiny_sd, strategy):
    own = {"max_train_steps": 6, "checkpointing_steps": 6, **strategy}
    killed_at = 3 * own.get("num_processes", 1)  # in micro-steps of all processes
    job = tiny.make_job(tmp_path, tiny_sd, tracking={"die_at": str(killed_at)}, **own)
    with pytest.raises(StageError):
        run_trainer(asked(job), grace_s=30)
    assert answer_of(job) == 1
    done = tiny.updates(job)
    assert done[-1] == 3
    run_trainer(job.model_copy(update={"tracking": {}}), grace_s=30)
    assert tiny.updates(job) == [*done, 2, 3, 4, 5, 6]
    whole = tiny.make_job(tmp_path, tiny_sd, name="whole", **own)
    run_trainer(whole, grace_s=30)
    assert files.tree_hashes(job.out_dir) == files.tree_hashes(whole.out_dir)
