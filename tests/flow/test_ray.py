"""Class images and scores on a Ray cluster of local nodes: same bytes, and a node may die."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dreambooth_core import files
from dreambooth_core.errors import SettingsError
from dreambooth_core.supervision import free_port
from tasks import ray_cluster
from tests.flow import workspaces
from tests.flow.workspaces import SUBJECT

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"
)
pytestmark = pytest.mark.timeout(1200)

_NUM_BLOCKS = 10
_MANY = (
    *("--stage", "class-images", "--set", f"prior.num_class_images={4 * _NUM_BLOCKS}"),
    *("--set", "prior.num_inference_steps=30"),
)


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

    def add(self) -> subprocess.Popen[bytes]:
        """A node with one core."""
        return self._start("--address", self.address, "--num-cpus", "1")

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *("--node-ip-address", "127.0.0.1", "--object-store-memory", "80000000"),
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
        """What the tasks have logged on all nodes."""
        logs = self.folder.glob("session_*/logs/worker-*.err")
        text = "".join(path.read_text() for path in logs if not path.parent.parent.is_symlink())
        return [line for line in text.splitlines() if f"subject={SUBJECT}" in line]

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        """End a node with all its processes, as a power cut does."""
        family = [node, *psutil.Process(node.pid).children(recursive=True)]
        for process in family:
            psutil.Process(process.pid).suspend()
        for process in family:
            os.kill(process.pid, signal.SIGKILL)
        node.wait(10)

    def close(self) -> None:
        """End all nodes."""
        for node in reversed(self.processes):
            if node.poll() is None:
                self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    cluster = Nodes(tmp_path)
    try:
        yield cluster
    finally:
        cluster.close()


def start(root: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", "run", SUBJECT, *arguments],
        cwd=root, env={**workspaces.environment(root), **more}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(root: Path, *arguments: str, **more: str) -> tuple[int, str]:
    """The exit code and the errors of `dreambooth run`."""
    process = start(root, *arguments, **more)
    _, errors = process.communicate(timeout=900)
    return process.returncode, errors


def published(root: Path, stage: str) -> dict[str, str]:
    return files.tree_hashes(root / "work" / SUBJECT / stage)


def blocks(root: Path) -> list[Path]:
    return list((root / ".state" / "class-images").glob("*/*/block"))


def wait_for_block(root: Path) -> None:
    deadline = time.monotonic() + 300
    while not blocks(root):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_ray
@pytest.mark.slow
def test_killed_node_costs_its_own_block_alone(tmp_path: Path, nodes: Nodes) -> None:
    alone, spread = (workspaces.build(tmp_path / name).root for name in ("alone", "spread"))
    code, errors = run(alone, *_MANY)
    assert code == 0, errors
    victim, _ = nodes.add(), nodes.add()
    done = list[Path]()

    def kill_in_the_middle() -> None:
        wait_for_block(spread)
        nodes.kill(victim)
        done.extend(blocks(spread))

    killer = threading.Thread(target=kill_in_the_middle, daemon=True)
    killer.start()
    code, errors = run(spread, *_MANY, DREAMBOOTH_RAY=nodes.address)
    killer.join(10)
    assert code == 0, errors
    assert 0 < len(done) < _NUM_BLOCKS - 1, "the node was not killed in the middle"
    assert "failed on the Ray cluster" not in errors
    assert published(spread, "class-images") == published(alone, "class-images")
    firsts = [int(found[1]) for line in nodes.lines() if (found := re.search(r"block (\d+)", line))]
    assert sorted(set(firsts)) == list(range(0, 4 * _NUM_BLOCKS, 4))
    assert len(firsts) <= _NUM_BLOCKS + 1
    assert all("run=" in line and "stage=class-images" in line for line in nodes.lines())
    log = (spread / ".state" / "logs" / SUBJECT / "run.log").read_text()
    assert f"for {_NUM_BLOCKS} tasks" in log


@needs_ray
@pytest.mark.slow
def test_scores_are_the_same_on_a_cluster(tmp_path: Path, nodes: Nodes) -> None:
    root = workspaces.build(tmp_path / "checkout").root
    code, errors = run(root, "--stage", "evaluate")
    assert code == 0, errors
    before = published(root, "evaluate")
    shutil.rmtree(root / ".state" / "evaluate")
    shutil.rmtree(root / "work" / SUBJECT / "evaluate")
    nodes.add()
    code, errors = run(root, "--stage", "evaluate", DREAMBOOTH_RAY=nodes.address)
    assert code == 0, errors
    assert "failed on the Ray cluster" not in errors
    assert published(root, "evaluate") == before
    rows = {line.rpartition(" took")[0].split(" of ")[-1] for line in nodes.lines()}
    assert rows == {"step 0", "checkpoint-2", "checkpoint-4"}
    assert all("stage=evaluate" in line for line in nodes.lines())


@needs_ray
@pytest.mark.slow
def test_stopped_run_leaves_no_task_and_continues_alone(tmp_path: Path, nodes: Nodes) -> None:
    alone, spread = (workspaces.build(tmp_path / name).root for name in ("alone", "spread"))
    assert run(alone, *_MANY)[0] == 0
    nodes.add()
    process = start(spread, *_MANY, DREAMBOOTH_RAY=nodes.address)
    wait_for_block(spread)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "error: stopped" in errors  # by the stage, or by the command if it is first
    assert "Traceback" not in errors
    time.sleep(3)
    left = len(blocks(spread))
    assert left < _NUM_BLOCKS
    time.sleep(5)
    assert len(blocks(spread)) == left
    assert run(spread, *_MANY)[0] == 0
    assert published(spread, "class-images") == published(alone, "class-images")


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "auto", "nowhere:x", "127.0.0.1:99999"])
def test_missing_cluster_is_one_sentence(address: str) -> None:
    wrong = address.format(port=free_port())
    begun = time.monotonic()
    with pytest.raises(SettingsError) as raised, ray_cluster.joined({"DREAMBOOTH_RAY": wrong}):
        pass
    assert f"no Ray cluster answers at {wrong}" in str(raised.value)
    assert "unset DREAMBOOTH_RAY" in str(raised.value)
    assert time.monotonic() - begun < 60


@pytest.mark.slow
def test_without_the_variable_ray_is_not_needed(tmp_path: Path) -> None:
    root = workspaces.build(tmp_path / "checkout").root
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "ray.py").write_text("raise ModuleNotFoundError('ray')\n")
    path = f"{tmp_path / 'none'}:{workspaces.REPOSITORY}"
    code, errors = run(root, "--stage", "class-images", PYTHONPATH=path)
    assert code == 0, errors
    shutil.rmtree(root / "work" / SUBJECT / "class-images")
    code, errors = run(
        root, "--stage", "class-images", PYTHONPATH=path, DREAMBOOTH_RAY="127.0.0.1:6379"
    )
    assert code == 2
    assert 'pip install "dreambooth-pipeline[ray]"' in errors
