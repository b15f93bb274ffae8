"""A Ray cluster of local nodes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import psutil

from dreambooth_core.supervision import free_port
from tests.flow import workspaces


class Nodes:
    """A head without cores and nodes with one core each, in processes of their own."""

    def __init__(self, folder: Path) -> None:
        # Sockets need a short path.
        self.folder, self._logs = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")), folder
        self.address = f"127.0.0.1:{(port := free_port())}"
        self.processes = list[subprocess.Popen[bytes]]()
        self._start(
            *("--head", "--port", str(port), "--num-cpus", "0", "--include-dashboard", "false")
        )

    def add(self, host: str = "127.0.0.1") -> subprocess.Popen[bytes]:
        """A node with one core."""
        return self._start("--address", self.address, "--num-cpus", "1", host=host)

    def _start(self, *arguments: str, host: str = "127.0.0.1") -> subprocess.Popen[bytes]:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *("--node-ip-address", host, "--object-store-memory", "80000000"),
            *("--temp-dir", str(self.folder), "--disable-usage-stats", *arguments),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(workspaces.REPOSITORY),
            "RAY_worker_niceness": "0",  # 15 starves beside other work
        }
        log = self._logs / f"node-{len(self.processes)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=self._logs, env=environment, start_new_session=True,
                stdout=stream, stderr=stream,
            )  # fmt: skip
        self.processes.append(process)
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        return process

    def lines(self) -> list[str]:
        """What the tasks have logged on all nodes about subjects."""
        logs = self.folder.glob("session_*/logs/worker-*.err")
        text = "".join(path.read_text() for path in logs if not path.parent.parent.is_symlink())
        return [line for line in text.splitlines() if "subject=" in line]

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        """End a node with all its processes, as a power cut does."""
        family = [node, *psutil.Process(node.pid).children(recursive=True)]
        for process in family:
            psutil.Process(process.pid).suspend()
        for process in family:
            os.kill(process.pid, signal.SIGKILL)
        node.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all nodes."""
        for node in reversed(self.processes):
            if node.poll() is None:
                self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)


def start(root: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start `dreambooth` in a workspace."""
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        cwd=root, env={**workspaces.environment(root), **more}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(root: Path, *arguments: str, **more: str) -> tuple[int, str]:
    """The exit code and the errors of `dreambooth`."""
    process = start(root, *arguments, **more)
    _, errors = process.communicate(timeout=900)
    return process.returncode, errors
