"""Starts the trainer, follows its output and ends all its processes, whatever happens."""

from __future__ import annotations

import collections
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import psutil

from dreambooth_core.environment import SPINNING
from dreambooth_core.errors import DreamBoothError, SettingsError, StageError
from dreambooth_core.logs import log_fields, timed_line, with_fields
from dreambooth_core.ports import Progress, StopSignal, Throttle, never_stop, no_progress
from dreambooth_core.records import TrainingRun
from dreambooth_core.supervision import supervised
from dreambooth_core.training import job as job_files
from dreambooth_core.training.checkpoints.published import finished_run
from dreambooth_core.training.job import TrainerExit, TrainJob
from dreambooth_core.training.launch.accelerate_config import Node, accelerate_options
from dreambooth_core.training.progress import parse_progress, start_line
from dreambooth_core.waiting import wait_until

OnLine = Callable[[str], None]

_TOKEN = "DREAMBOOTH_TRAINER"
"""Variable that marks every process of one launch: launchers start workers in sessions of their
own, so a process group is not enough to find them."""

_READ_S = 0.1
_POLL_S = 0.05
_KILL_S = 10.0
_CHUNK = 1 << 16
_TAIL_LINES = 30
_SECONDS_BETWEEN_PROGRESS = 1.0
_SECONDS_BETWEEN_LOGGED_PROGRESS = 5.0
_SIGNAL = re.compile(r"Signals\.(SIG[A-Z]+)|Signal \d+ \((SIG[A-Z]+)\)")


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training ended without failing: done, with its run, or stopped.

    `step` is the step of the saved state; None if the stop came before a new save.
    """

    how: Literal["done", "stopped"]
    step: int | None
    run: TrainingRun | None


def run_trainer(
    job: TrainJob,
    *,
    grace_s: float,
    on_line: OnLine | None = None,
    progress: Progress = no_progress,
    should_stop: StopSignal = never_stop,
    node: Node | None = None,
    lock_fd: int | None = None,
) -> TrainingOutcome:
    """Train the job in new processes and wait until all of them have ended.

    Their output goes to `job.log_file`; `on_line` receives each line except progress. On a stop or
    an exception, the trainer has `grace_s` seconds to save before it is killed. `node` identifies
    this machine if several train. The last process to end releases the lock of `lock_fd`. Raises
    StageError with the end of the log after a crash, and SettingsError for settings that the
    trainer refused.
    """
    if run := finished_run(job):
        return TrainingOutcome(how="done", step=job.last_step, run=run)
    job.state_dir.mkdir(parents=True, exist_ok=True)
    log_file = _log_file(job, node)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if node is None or node.rank == 0:
        job_files.clear_exit(job.state_dir)
    with log_file.open("a", encoding="utf-8") as log:
        log.write(timed_line(with_fields(start_line(job.fingerprint))) + "\n")
        output = Output(log, on_line=on_line, progress=progress)
        launch = _start(job, node=node, lock_fd=lock_fd)
        try:
            was_stopped = _follow(job, launch, output, should_stop=should_stop, grace_s=grace_s)
        finally:
            launch.end(
                grace_s=grace_s, is_done=lambda: job_files.read_exit(job.state_dir) is not None
            )
    return _outcome(job, launch, output.tail, was_stopped=was_stopped)


def _log_file(job: TrainJob, node: Node | None) -> Path:
    """The job's log; every machine except the first adds its rank to the name."""
    if node is None or node.rank == 0:
        return job.log_file
    return job.log_file.with_stem(f"{job.log_file.stem}-node{node.rank}")


def _start(job: TrainJob, *, node: Node | None, lock_fd: int | None) -> Launch:
    """Start `accelerate launch` in a new session; it dies with this process."""
    job_path = job.save()
    token = secrets.token_hex(8)
    command = [sys.executable, "-m", "accelerate.commands.launch", *accelerate_options(job, node)]
    command += ["--module", *job.entry, str(job_path)]
    variables = {**_environment(job), _TOKEN: token}
    process = subprocess.Popen(
        supervised(command, adopt=True, variables=variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=() if lock_fd is None else (lock_fd,),
    )
    return Launch(process, token)


def _environment(job: TrainJob) -> dict[str, str]:
    """Threads from the settings, as their number changes the results; no telemetry, no network."""
    threads = str(job.compute.num_threads)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **SPINNING,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "true",
        "PYTHONUNBUFFERED": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }


def _follow(
    job: TrainJob, launch: Launch, output: Output, *, should_stop: StopSignal, grace_s: float
) -> bool:
    """Pass lines on until all processes have ended; return whether the caller stopped them.

    The trainer writes its result last, after everything is saved and closed. A kill after that
    only skips the slow exit of its interpreter.
    """
    deadline: float | None = None
    while launch.is_alive():
        output.read(launch.stdout, wait_s=_READ_S)
        late = deadline is not None and time.monotonic() > deadline
        if late or job_files.read_exit(job.state_dir) is not None:
            launch.kill_all()
        elif deadline is None and should_stop():
            launch.signal_all(signal.SIGTERM)
            deadline = time.monotonic() + grace_s
    output.drain(launch.stdout)
    return deadline is not None


def _outcome(
    job: TrainJob, launch: Launch, tail: Sequence[str], *, was_stopped: bool
) -> TrainingOutcome:
    """Read the outcome from the trainer's result; without one, it was killed or crashed."""
    ended = job_files.read_exit(job.state_dir)
    if ended is None:
        if was_stopped:
            return TrainingOutcome(how="stopped", step=None, run=None)
        raise _crash(launch.exit_code, tail)
    if ended.how == "stopped":
        return TrainingOutcome(how="stopped", step=ended.step, run=None)
    if ended.how == "failed":
        raise _failure(ended, tail)
    run = finished_run(job)
    if run is None:
        raise StageError("the trainer reported success, but its output is incomplete")
    return TrainingOutcome(how="done", step=ended.step, run=run)


def _failure(ended: TrainerExit, tail: Sequence[str]) -> DreamBoothError:
    """The error that the trainer reported, with the end of its log unless settings were wrong."""
    if ended.exit_code == SettingsError.exit_code:
        return SettingsError(str(ended.error))
    other = [line for line in tail if str(ended.error) not in line]  # the log has it, too
    return StageError(f"the training failed: {ended.error}", got=_last_lines(other))


def _crash(exit_code: int, tail: Sequence[str]) -> StageError:
    found = [a or b for line in tail for a, b in _SIGNAL.findall(line)]
    name = found[-1] if found else _signal_of(exit_code)
    how = f"was ended by {name}" if name else f"crashed with exit status {exit_code}"
    hint = "see the log for details; run again to continue from the last saved state"
    if name == "SIGKILL":
        hint = (
            "the system sends SIGKILL when memory runs out: lower train.train_batch_size or "
            f"enable train.gradient_checkpointing; {hint}"
        )
    return StageError(f"the trainer {how}", got=_last_lines(tail), hint=hint)


def _signal_of(exit_code: int) -> str | None:
    """The signal of an exit code: negative for the supervisor, above 128 for the launcher."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    return signal.Signals(number).name if number in set(signal.Signals) else None


def _last_lines(tail: Sequence[str]) -> str | None:
    if not tail:
        return None
    return "the last lines of its log:\n" + "\n".join(f"    {line}" for line in tail)


def survivors(token: str) -> list[psutil.Process]:
    """The living processes with `token` in their environment, without zombies."""
    return [process for process in psutil.process_iter() if _has_token(process, token)]


def _has_token(process: psutil.Process, token: str) -> bool:
    try:
        return process.environ().get(_TOKEN) == token and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Launch:
    """A started process and all its descendants, found by their token."""

    def __init__(self, process: subprocess.Popen[bytes], token: str) -> None:
        assert process.stdout is not None, "the process needs a pipe as stdout"
        self._process, self._token = process, token
        self.stdout: IO[bytes] = process.stdout

    @property
    def exit_code(self) -> int:
        """The exit code of the started process; negative for a signal."""
        return self._process.wait()

    def is_alive(self) -> bool:
        """Whether any process of the launch is alive."""
        return self._process.poll() is None or bool(survivors(self._token))

    def signal_all(self, number: signal.Signals) -> None:
        """Send `number` to every living process; to the supervisor, which keeps the lock, last."""
        for process in survivors(self._token):
            with suppress(psutil.Error):
                process.send_signal(number)
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill_all(self) -> None:
        """SIGKILL every process of the launch and wait for their end."""
        wait_until(self._is_killed, timeout_s=_KILL_S, every_s=_POLL_S)

    def _is_killed(self) -> bool:
        if not self.is_alive():
            return True
        self.signal_all(signal.SIGKILL)
        return False

    def end(self, *, grace_s: float, is_done: Callable[[], bool] = lambda: False) -> None:
        """End every process: send SIGTERM, wait up to `grace_s` seconds or until `is_done`, kill.

        An exception during the wait (a second Ctrl-C) skips the rest of the wait.
        """
        try:
            if self.is_alive():
                self.signal_all(signal.SIGTERM)
                wait_until(
                    lambda: is_done() or not self.is_alive(), timeout_s=grace_s, every_s=_POLL_S
                )
        finally:
            self.kill_all()
            self.stdout.close()


class Output:
    """Copies a pipe's lines to the log and the caller without blocking or threads."""

    def __init__(self, log: IO[str], *, on_line: OnLine | None, progress: Progress) -> None:
        self._log, self._on_line, self._progress = log, on_line, progress
        self._partial = b""
        self._is_open = True
        self._reached: dict[str, str] = {}
        self._shown = 0.0
        self._throttle = Throttle(_SECONDS_BETWEEN_LOGGED_PROGRESS)
        self._last_lines: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)

    @property
    def tail(self) -> list[str]:
        """The last lines of the output."""
        return list(self._last_lines)

    def read(self, pipe: IO[bytes], *, wait_s: float) -> bool:
        """Pass on the lines of the next `wait_s` seconds; return False if there are none."""
        if not self._is_open:
            time.sleep(wait_s)
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            if not selector.select(wait_s):
                return False
        chunk = os.read(pipe.fileno(), _CHUNK)
        self._is_open = bool(chunk)
        *lines, self._partial = (self._partial + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._pass_on(line.decode("utf-8", errors="replace").rstrip())
        return self._is_open

    def drain(self, pipe: IO[bytes]) -> None:
        """Pass on the rest after all writers have ended."""
        while self.read(pipe, wait_s=0):
            pass
        if self._partial:
            self._pass_on(self._partial.decode("utf-8", errors="replace").rstrip())
            self._partial = b""

    def _pass_on(self, line: str) -> None:
        if not line:
            return
        step = parse_progress(line)
        is_last = step is not None and step.done == step.total
        self._reached = self._reached if step is None else {"step": str(step.done)}
        with log_fields(**self._reached):
            if step is None or is_last or self._throttle.is_due():
                self._log.write(timed_line(with_fields(line)) + "\n")
                self._log.flush()
            if step is None and self._on_line is not None:
                self._on_line(line)
        self._last_lines.append(line)
        if step is None:
            return
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_PROGRESS or is_last:
            self._shown = now
            self._progress(step.done, step.total, step.text)
