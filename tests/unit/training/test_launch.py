"""Real processes: `accelerate launch`, signals, kills, and nothing left behind."""

import csv
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from dreambooth_core import files, locks
from dreambooth_core.errors import SettingsError, StageError
from dreambooth_core.training.launch.launcher import run_trainer
from tests.unit.training import tiny

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path):
    yield
    deadline = time.monotonic() + 15
    while (left := _processes_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def _processes_of(folder: Path) -> list[str]:
    """Command lines of the living processes that work below `folder`."""
    listed = subprocess.run(
        ["ps", "-eo", "stat=,args="], check=True, capture_output=True, text=True
    )
    lines = [line for line in listed.stdout.splitlines() if str(folder) in line]
    return [line for line in lines if not line.startswith("Z")]


def _wait_for_steps(
    job, count: int, *, worker: subprocess.Popen | None = None, within_s: float = 300
) -> None:
    """Until so many updates are done, or the worker that is given has ended."""
    deadline = time.monotonic() + within_s
    while len(tiny.updates(job)) < count:
        if worker is not None and worker.poll() is not None:
            return
        log = job.log_file.read_text() if job.log_file.exists() else "no log"
        assert time.monotonic() < deadline, log
        time.sleep(0.02)


def test_stopped_run_saves_quickly_and_resumes_to_the_same_bytes(tmp_path, tiny_sd):
    whole = tiny.make_job(tmp_path, tiny_sd, name="whole", max_train_steps=10)
    tiny.train(whole)
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=10, tracking={"slow_s": "0.5"})
    asked: list[float] = []

    def should_stop() -> bool:
        stop = len(tiny.updates(job)) >= 4
        asked.extend([time.monotonic()] if stop and not asked else [])
        return stop

    with locks.hold(tmp_path / "lock", timeout_s=1, inheritable=True) as fd:
        stopped = run_trainer(job, grace_s=30, should_stop=should_stop, lock_fd=fd)
    assert time.monotonic() - asked[0] < 10
    assert stopped.how == "stopped"
    assert stopped.step is not None
    assert 4 <= stopped.step < 10
    lines: list[str] = []
    steps: list[int] = []
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=10)
    done = run_trainer(
        job, grace_s=30, on_line=lines.append, progress=lambda d, t, s="": steps.append(d)
    )
    assert done.how == "done"
    assert f"training starts after step {stopped.step} of 10" in lines
    assert steps[-1] == 10
    assert files.tree_hashes(job.out_dir) == files.tree_hashes(whole.out_dir)
    assert tiny.updates(job) == list(range(1, 11))


def test_killed_trainer_is_reported_with_the_end_of_its_log(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, tracking={"die_at": "4"})
    with pytest.raises(StageError, match="was ended by SIGKILL") as caught:
        run_trainer(job, grace_s=5)
    assert "training starts after step 0 of 6" in str(caught.value)
    assert "memory runs out" in str(caught.value)
    assert not job.out_dir.exists()


@pytest.mark.slow
def test_settings_that_the_trainer_refuses_are_the_users_error(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, mixed_precision="fp16")
    with pytest.raises(SettingsError, match="needs a GPU"):
        run_trainer(job, grace_s=5)


@pytest.mark.slow
def test_exception_in_the_parent_stops_and_saves_the_training(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=200, tracking={"slow_s": "0.2"})

    def interrupt(done, total, text=""):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trainer(job, grace_s=30, progress=interrupt)
    assert _processes_of(job.state_dir) == []
    steps = tiny.updates(job)
    assert (job.resume_dir / f"step-{steps[-1]:08d}" / "record.json").exists()


@pytest.mark.slow
def test_trainer_that_ignores_sigterm_is_killed_after_the_grace(tmp_path, tiny_sd):
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=200, tracking={"slow_s": "600"})
    began: list[float] = []

    def should_stop() -> bool:
        if "training starts" in job.log_file.read_text() and not began:
            began.append(time.monotonic())
        return bool(began)

    outcome = run_trainer(job, grace_s=2, should_stop=should_stop)
    assert (outcome.how, outcome.step) == ("stopped", None)
    assert time.monotonic() - began[0] < 10


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_kill_9_of_the_parent_ends_all_and_frees_the_lock(num_processes, tmp_path, tiny_sd):
    job = tiny.make_job(
        tmp_path,
        tiny_sd,
        max_train_steps=2000,
        num_processes=num_processes,
        tracking={"slow_s": "0.1"},
    )
    job.state_dir.mkdir(parents=True)
    lock = tmp_path / "lock"
    script = (
        "import sys; from pathlib import Path\n"
        "from dreambooth_core import locks\n"
        "from dreambooth_core.training.job import TrainJob\n"
        "from dreambooth_core.training.launch.launcher import run_trainer\n"
        "with locks.hold(Path(sys.argv[2]), timeout_s=1, inheritable=True) as fd:\n"
        "    run_trainer(TrainJob.load(Path(sys.argv[1])), grace_s=30, lock_fd=fd)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(job.save()), str(lock)])
    _wait_for_steps(job, 3)
    with pytest.raises(StageError, match="is held by"), locks.hold(lock, timeout_s=0):
        pass
    parent.kill()
    parent.wait()
    with locks.hold(lock, timeout_s=30):
        pass  # free: the last process is gone
    steps = tiny.updates(job)
    assert (job.resume_dir / f"step-{steps[-1]:08d}" / "record.json").exists()


@pytest.mark.slow
def test_random_kills_cost_one_interval_and_change_no_byte(tmp_path, tiny_sd):
    steps = 90  # more than six kills leave time for, also where updates are quick
    whole = tiny.make_job(tmp_path, tiny_sd, name="whole", max_train_steps=steps)
    tiny.train(whole)
    job = tiny.make_job(tmp_path, tiny_sd, max_train_steps=steps)
    draw = random.Random(5)
    kills = 0
    while kills < 6:
        job.state_dir.mkdir(parents=True, exist_ok=True)
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.training.tiny_worker", str(job.save())],
            stdout=subprocess.DEVNULL,
        )
        already = len(tiny.updates(job))
        _wait_for_steps(job, already + draw.randrange(1, 6), worker=worker)
        time.sleep(draw.random() * 0.2)
        worker.kill()
        if worker.wait() != -signal.SIGKILL:
            break  # it was done before the kill
        kills += 1
    assert run_trainer(job, grace_s=10).how == "done"
    assert files.tree_hashes(job.out_dir) == files.tree_hashes(whole.out_dir)
    assert len(tiny.updates(job)) <= steps + kills * job.train.checkpointing_steps
    assert kills >= 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_equal_one_with_twice_the_batch(method, tmp_path, tiny_sd):
    lora = {**tiny.LORA} if method == "lora" else None
    one = tiny.make_job(tmp_path, tiny_sd, name="one", method=method, lora=lora, train_batch_size=4)
    tiny.train(one)
    two = tiny.make_job(tmp_path, tiny_sd, name="two", method=method, lora=lora, num_processes=2)
    assert run_trainer(two, grace_s=10).how == "done"
    tables = [list(csv.DictReader((j.out_dir / "metrics.csv").open())) for j in (one, two)]
    for first, second in zip(*tables, strict=True):
        assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-5)
        assert float(first["grad_norm"]) == pytest.approx(float(second["grad_norm"]), rel=1e-4)
    weights = [
        load_file(j.resume_dir / "step-00000006" / "weights.safetensors") for j in (one, two)
    ]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max().item() < 1e-4, name


def test_supervised_command_keeps_the_lock_until_its_last_process_ends(
    tmp_path,
):
    # like accelerate's launcher, the command dies at SIGTERM, before the process it has started
    slow = "import signal, time; signal.signal(15, lambda *_: (time.sleep(2), exit())); "
    slow += "from dreambooth_core.supervision import die_with_parent; die_with_parent(); "
    slow += "print('ready', flush=True); time.sleep(99)"
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {slow!r}])"
    script = (
        "import subprocess, sys; from pathlib import Path\n"
        "from dreambooth_core import locks\n"
        "from dreambooth_core import supervision\n"
        f"command = supervision.supervised([sys.executable, '-c', {launcher!r}], adopt=True)\n"
        "with locks.hold(Path(sys.argv[1]), timeout_s=1, inheritable=True) as fd:\n"
        "    subprocess.run(command, start_new_session=True, pass_fds=(fd,))\n"
    )
    lock = tmp_path / "lock"
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    descendants = psutil.Process(parent.pid).children(recursive=True)
    assert len(descendants) == 3  # the guard, the launcher, the worker
    parent.kill()
    parent.wait()
    began = time.monotonic()
    with locks.hold(lock, timeout_s=30):
        assert time.monotonic() - began > 1.5
        assert not any(p.is_running() and p.status() != "zombie" for p in descendants[1:])
