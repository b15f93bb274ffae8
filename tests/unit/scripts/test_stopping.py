"""Ctrl-C and SIGTERM: what they end, and where they are only noted."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_core.scripts.launcher_env import LauncherEnv
from dreambooth_core.scripts.signals import Stop
from tests.paths import ROOT
from tests.unit.scripts.command import arguments

ENDS_IN_S = 10
ALONE: dict[str, str] = {}
BY_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}
SEVERAL = {"WORLD_SIZE": "2"}


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def stop_of(monkeypatch):
    """A Stop that receives this process's signals, for a launcher's environment."""

    def end(code: int) -> None:
        raise Ended(code)

    def make(env: dict[str, str]) -> Stop:
        stop = Stop(LauncherEnv.from_env(env))
        stop.install()
        return stop

    receivers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(os, "_exit", end)
    yield make
    for number, receiver in receivers.items():
        signal.signal(number, receiver)


def ends(*numbers: signal.Signals) -> list[bool]:
    """For each signal to this process whether it was the end."""
    found = []
    for number in numbers:
        try:
            signal.raise_signal(number)
        except Ended:
            found.append(True)
        else:
            found.append(False)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_stops_and_second_ends_the_process(stop_of, number):
    stop = stop_of(ALONE)
    with stop.watched():
        assert not stop()
        assert ends(number) == [False]
        assert stop()
        assert ends(number) == [True]


def test_signal_outside_watched_work_ends_the_process_with_a_message(stop_of, capfd):
    stop = stop_of(ALONE)
    with stop.watched():
        pass
    assert ends(signal.SIGTERM) == [True]
    assert "stopped before the training began" in capfd.readouterr().err


def test_stop_during_the_export_ends_the_run_before_the_upload(stop_of, capfd):
    stop = stop_of(ALONE)
    stop.watch()
    assert ends(signal.SIGINT) == [False]
    with pytest.raises(Ended):
        stop.exit_on_stop("the result is whole")
    assert capfd.readouterr().err == "the result is whole\n"


def test_launcher_death_is_not_a_second_stop(stop_of):
    """Its launcher dies of the first Ctrl-C; by its death the kernel sends SIGTERM here."""
    with stop_of(BY_ACCELERATE).watched():
        assert ends(signal.SIGINT, signal.SIGTERM) == [False, False]
        assert ends(signal.SIGINT) == [True]
    with stop_of(BY_ACCELERATE).watched():  # SIGTERM to the launcher and to all that it started
        assert ends(signal.SIGTERM, signal.SIGTERM) == [False, False]


def test_one_of_several_processes_never_exits_alone(stop_of):
    stop = stop_of(SEVERAL)
    assert ends(signal.SIGINT, signal.SIGINT, signal.SIGTERM) == [False, False, False]
    stop.exit_on_stop("nothing")
    assert stop()


def start(flags: list[str], log: Path, *, launcher: tuple[str, ...] = (), **env: object):
    """A script in a session of its own, as a shell's job."""
    with log.open("wb") as sink:
        return subprocess.Popen(
            [sys.executable, *launcher, "train_dreambooth.py", *flags],
            cwd=ROOT, env=os.environ | {name: str(value) for name, value in env.items()},
            stdout=sink, stderr=sink, start_new_session=True,
        )  # fmt: skip


def seconds_to_end(process: subprocess.Popen, number: signal.Signals) -> float:
    began = time.monotonic()
    os.killpg(process.pid, number)
    try:
        process.wait(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return time.monotonic() - began


def test_ctrl_c_during_a_hanging_download_ends_the_script(photos, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        env = {
            "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": 0, "HF_HOME": tmp_path / "home",
            "HF_HUB_ETAG_TIMEOUT": 300, "HF_HUB_DOWNLOAD_TIMEOUT": 300,
        }  # fmt: skip
        flags = arguments("owner/model", photos, tmp_path / "out")
        process = start(flags, tmp_path / "log", **env)
        server.settimeout(120)
        connection, _ = server.accept()
        with connection:
            connection.recv(1)  # it has asked, and waits
            assert seconds_to_end(process, signal.SIGINT) < ENDS_IN_S
    assert process.returncode == 1
    said = (tmp_path / "log").read_text()
    assert said.splitlines()[-1].startswith("stopped before the training began")
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), ("-m", "accelerate.commands.launch", "--cpu")])
def test_ctrl_c_during_training_saves_a_checkpoint(tiny_sd, photos, tmp_path, launcher):
    out, log = tmp_path / "out", tmp_path / "log"
    flags = arguments(tiny_sd, photos, out, max_train_steps=100_000, checkpointing_steps=100_000)
    process = start(flags, log, launcher=launcher)
    while not re.search(r"step \d+/100000", log.read_text()):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    assert seconds_to_end(process, signal.SIGINT) < ENDS_IN_S
    assert process.returncode != 0
    deadline = time.monotonic() + ENDS_IN_S  # accelerate's launcher does not wait for the script
    while "stopped and saved at step" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    step = re.search(r"stopped and saved at step (\d+)", log.read_text())
    assert step
    assert (out / f"checkpoint-{step[1]}" / "record.json").is_file()
