"""Checkpoints are written while the updates go on, and nothing else is different."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core import files
from dreambooth_core.environment import available_bytes
from dreambooth_core.errors import StageError
from dreambooth_core.training import worker
from dreambooth_core.training.checkpoints import resume_state
from dreambooth_core.training.checkpoints.saving import PipelineLayout
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.launch.launcher import run_trainer
from dreambooth_core.training.optim import snapshot
from dreambooth_core.training.optim.snapshot import Snapshots, StateFiles
from dreambooth_core.training.trainable import load_trainable_model
from tests.flushes import Flushes
from tests.unit.training import tiny

VARIANTS = {
    "full, with text encoder": {"train_text_encoder": True},
    "adapters on both, with DoRA, average, bf16 compute": {
        "method": "lora",
        "lora": {**tiny.LORA, "use_dora": True},
        "train_text_encoder": True,
        "ema_decay": 0.5,
        "mixed_precision": "bf16",
    },
    "bf16 weights, average, update in the backward pass, checkpointing": {
        "weight_dtype": "bf16",
        "mixed_precision": "bf16",
        "optimizer": "adafactor",
        "fused_backward": True,
        "max_grad_norm": None,
        "ema_decay": 0.5,
        "gradient_checkpointing": True,
    },
}
WAITS = "note: the training waits for each save"


def _job(tmp_path: Path, base: Path, **changes: Any) -> TrainJob:
    return tiny.make_job(tmp_path, base, **{"async_checkpointing": True, **changes})


def _kept(job: TrainJob) -> list[dict[str, str]]:
    return [files.tree_hashes(folder) for folder in (job.out_dir, job.resume_dir)]


def _newest(job: TrainJob) -> int | None:
    state = resume_state.newest_state(job.resume_dir, fingerprint=job.fingerprint)
    return state and state.step


@pytest.fixture
def slow_disk(monkeypatch) -> Callable[..., dict[int, int]]:
    """Makes the save of a step last until an update is done; tells how many were in its end.

    And `at_least_s` seconds longer, in which many updates would be made.
    """

    def of(job: TrainJob, *, save: int, until: int, at_least_s: float = 0) -> dict[int, int]:
        updates_at_end: dict[int, int] = {}

        class Slow(PipelineLayout):
            def save(self, outcome, *, step, metrics):
                if step == save:
                    tiny.wait_for(lambda: len(tiny.updates(job)) >= until)
                    time.sleep(at_least_s)
                super().save(outcome, step=step, metrics=metrics)
                updates_at_end[step] = len(tiny.updates(job))

        monkeypatch.setattr(worker, "PipelineLayout", Slow)
        return updates_at_end

    return of


@pytest.mark.parametrize("variant", VARIANTS)
def test_asynchronous_saves_write_the_same_bytes(
    variant, tmp_path, tiny_sd, slow_disk, monkeypatch, capsys
):
    settings = {"checkpointing_steps": 2, "checkpoints_total_limit": 3, **VARIANTS[variant]}
    beside = _job(tmp_path, tiny_sd, name="beside", **settings)
    ends = slow_disk(beside, save=2, until=4)
    tiny.train(beside)
    assert WAITS not in capsys.readouterr().out
    assert ends[2] >= 4
    monkeypatch.setattr(worker, "PipelineLayout", PipelineLayout)
    monkeypatch.setattr(snapshot, "available_bytes", lambda: 1000)
    waiting = _job(tmp_path, tiny_sd, name="waiting", **settings)
    tiny.train(waiting)
    assert capsys.readouterr().out.count(WAITS) == 1
    assert _kept(beside) == _kept(waiting)
    assert sorted(p.name[-1] for p in waiting.resume_dir.iterdir()) == ["2", "4", "6"]


def test_updates_continue_during_a_slow_save(tmp_path, tiny_sd, slow_disk):
    job = _job(tmp_path, tiny_sd, max_train_steps=9, checkpointing_steps=3)
    ends = slow_disk(job, save=3, until=6)
    tiny.train(job)
    assert ends == {3: 6, 6: ends[6], 9: 9}


@pytest.mark.parametrize("is_async", [False, True])
def test_everything_saved_is_on_the_disk(is_async, tmp_path, tiny_sd, monkeypatch):
    job = _job(tmp_path, tiny_sd, async_checkpointing=is_async, max_train_steps=2,
               checkpointing_steps=1)  # fmt: skip
    flushes = Flushes(tmp_path, monkeypatch)
    tiny.train(job)
    named = {Path(name).name for name in flushes.named}
    assert named >= {"checkpoint-1", "checkpoint-2", "step-00000001", "step-00000002", "out"}
    assert flushes.named_too_early == flushes.lost_names == []


def test_without_room_for_a_copy_the_updates_wait(tmp_path, tiny_sd, slow_disk, monkeypatch):
    monkeypatch.setattr(snapshot, "available_bytes", lambda: 1000)
    job = _job(tmp_path, tiny_sd)
    ends = slow_disk(job, save=3, until=3, at_least_s=1)
    tiny.train(job)
    assert ends == {3: 3, 6: 6}


def test_unless_asked_for_the_updates_wait(tmp_path, tiny_sd, slow_disk):
    job = _job(tmp_path, tiny_sd, async_checkpointing=False)
    ends = slow_disk(job, save=3, until=3, at_least_s=1)
    tiny.train(job)
    assert ends == {3: 3, 6: 6}


def test_a_stop_during_a_save_leaves_both_states(tmp_path, tiny_sd, slow_disk):
    job = _job(tmp_path, tiny_sd)
    slow_disk(job, save=3, until=5)
    ended = tiny.train(job, should_stop=tiny.stop_after(5))
    assert (ended.how, ended.step) == ("stopped", 5)
    names = sorted(path.name for path in job.resume_dir.iterdir())
    assert names == ["step-00000003", "step-00000005"]
    assert _newest(job) == 5


def _spoil(monkeypatch, *, step: int) -> None:
    """The disk loses the last byte of a state's weights after they were hashed."""
    fsync = files.fsync_tree

    def fsync_and_lose(root: Path) -> None:
        fsync(root)
        if root.name.startswith(f".aside-step-{step:08d}"):
            weights = root / "weights.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1])

    monkeypatch.setattr(files, "fsync_tree", fsync_and_lose)


def test_failed_save_ends_the_run_and_keeps_older_states(tmp_path, tiny_sd, monkeypatch):
    settings = {"max_train_steps": 8, "checkpointing_steps": 2, "checkpoints_total_limit": 1}
    whole = _job(tmp_path, tiny_sd, name="whole", **settings)
    tiny.train(whole)
    job = _job(tmp_path, tiny_sd, **settings)
    with monkeypatch.context() as patched:
        _spoil(patched, step=4)
        with pytest.raises(StageError, match="state of step 4 was written but cannot be read back"):
            tiny.train(job)
    assert 4 <= len(tiny.updates(job)) <= 6  # the save of step 6 would have waited
    assert _newest(job) == 2
    tiny.train(job)
    assert _kept(job) == _kept(whole)


def test_os_error_of_the_last_save_is_raised(tmp_path, tiny_sd, slow_disk):
    job = _job(tmp_path, tiny_sd, max_train_steps=4, checkpointing_steps=3)

    def rows(positions):
        if positions[0] == 4:  # the third update: no checkpoint can be below a file
            files.write_text(job.checkpoints_dir, "")
        return tiny.rows_at(positions)

    slow_disk(job, save=3, until=4)
    with pytest.raises(FileExistsError):
        tiny.train(job, rows=rows)
    assert len(tiny.updates(job)) == 4
    assert not job.out_dir.exists()


def test_failed_update_is_reported_and_the_state_is_saved(tmp_path, tiny_sd, slow_disk):
    job = _job(tmp_path, tiny_sd)
    slow_disk(job, save=3, until=5)
    with pytest.raises(StageError, match="step 5 has a non-finite loss"):
        tiny.train(job, rows=_not_a_number_at(5))
    assert _newest(job) == 3


def test_failed_update_has_priority_over_a_failed_save(
    tmp_path, tiny_sd, slow_disk, monkeypatch, capsys
):
    job = _job(tmp_path, tiny_sd)
    slow_disk(job, save=3, until=5)
    _spoil(monkeypatch, step=3)
    with pytest.raises(StageError, match="step 5 has a non-finite loss"):
        tiny.train(job, rows=_not_a_number_at(5))
    assert "the last save failed, too: the state of step 3" in capsys.readouterr().out


def _not_a_number_at(step: int):
    def rows(positions):
        batch = tiny.rows_at(positions)
        if positions[0] == 2 * (step - 1):  # two rows a step
            batch.latents_BCHW[0] = torch.nan
        return batch

    return rows


@pytest.mark.timeout(300)
def test_kill_during_a_save_resumes_to_the_same_bytes(tmp_path, tiny_sd):
    settings = {"max_train_steps": 8, "checkpointing_steps": 2, "checkpoints_total_limit": 1}
    whole = _job(tmp_path, tiny_sd, name="whole", **settings)
    tiny.train(whole)
    job = _job(tmp_path, tiny_sd, tracking={"die_in_save": "4"}, **settings)
    with pytest.raises(StageError, match="was ended by SIGKILL"):
        run_trainer(job, grace_s=5)
    assert len(tiny.updates(job)) in (5, 6)  # it went on during the save
    assert _newest(job) == 2
    assert any(files.is_aside(path.name) for path in job.resume_dir.iterdir())
    job = _job(tmp_path, tiny_sd, **settings)
    tiny.train(job)
    assert _kept(job) == _kept(whole)
    assert tiny.updates(job)[-6:] == [3, 4, 5, 6, 7, 8]


def test_snapshot_is_stable_and_the_next_reuses_its_memory(tmp_path, tiny_sd):
    model = load_trainable_model(_job(tmp_path, tiny_sd), device=torch.device("cpu"))
    live = {name: p.detach() for name, p in model.trainable.items()}
    state = StateFiles({"weights": live}, {})
    snapshots = Snapshots(model)
    first = snapshots.take(state, published="weights")
    assert first is not None
    copies = first.state.tensors["weights"]
    before = {name: t.clone() for name, t in live.items()}
    for value in live.values():
        value.add_(1)
    for name, parameter in first.model.trainable.items():
        assert torch.equal(copies[name], before[name])
        assert parameter.data_ptr() == copies[name].data_ptr()
    second = snapshots.take(state, published="weights")
    assert second is not None
    for name, tensor in second.state.tensors["weights"].items():
        assert torch.equal(tensor, live[name])
        assert tensor.data_ptr() == copies[name].data_ptr()


def test_adapters_are_copied_without_the_network_that_they_sit_in(tmp_path, tiny_sd):
    job = _job(tmp_path, tiny_sd, method="lora", lora=tiny.LORA)
    model = load_trainable_model(job, device=torch.device("cpu"))
    live = {name: p.detach() for name, p in model.trainable.items()}
    taken = Snapshots(model).take(StateFiles({"weights": live}, {}), published="weights")
    assert taken is not None
    own = {p.data_ptr() for p in model.denoiser.parameters()}
    copied = [p for p in taken.model.denoiser.parameters() if p.data_ptr() not in own]
    assert len(copied) == len(live)


def _write(root: Path, **texts: str) -> Path:
    root.mkdir(parents=True)
    for name, text in texts.items():
        (root / name.replace("__", ".")).write_text(text)
    return root


def test_container_memory_limit_counts_below_the_machines(tmp_path):
    stat = "anon 5\ninactive_file 300\ntotal_inactive_file 700\n"
    two = _write(tmp_path / "2", memory__max="5000\n", memory__current="4000\n", memory__stat=stat)
    assert available_bytes(two) == 1300
    one = {"memory__limit_in_bytes": "5000\n", "memory__usage_in_bytes": "4000\n"}
    _write(tmp_path / "1" / "memory", **one, memory__stat=stat)
    assert available_bytes(tmp_path / "1") == 1700
    free = _write(tmp_path / "3", memory__max="max\n", memory__current="1\n", memory__stat=stat)
    assert available_bytes(free) > 10**6
