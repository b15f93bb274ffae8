"""Class images and scores on a Ray cluster of local nodes: same bytes, and a node may die."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core import files
from dreambooth_core.errors import SettingsError
from dreambooth_core.supervision import free_port
from tasks import ray_cluster
from tests.flow import workspaces
from tests.flow.ray_nodes import Nodes, run, start
from tests.flow.workspaces import SUBJECT

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"
)
pytestmark = pytest.mark.timeout(1200)

_NUM_BLOCKS = 10
_STAGE = ("run", SUBJECT, "--stage")
_MANY = (
    *(*_STAGE, "class-images", "--set", f"prior.num_class_images={4 * _NUM_BLOCKS}"),
    *("--set", "prior.num_inference_steps=30"),
)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path) as cluster:
        yield cluster


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
    code, errors = run(root, *_STAGE, "evaluate")
    assert code == 0, errors
    before = published(root, "evaluate")
    shutil.rmtree(root / ".state" / "evaluate")
    shutil.rmtree(root / "work" / SUBJECT / "evaluate")
    nodes.add()
    code, errors = run(root, *_STAGE, "evaluate", DREAMBOOTH_RAY=nodes.address)
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
    code, errors = run(root, *_STAGE, "class-images", PYTHONPATH=path)
    assert code == 0, errors
    shutil.rmtree(root / "work" / SUBJECT / "class-images")
    none = {"PYTHONPATH": path, "DREAMBOOTH_RAY": "127.0.0.1:6379"}
    code, errors = run(root, *_STAGE, "class-images", **none)
    assert code == 2
    assert 'pip install "dreambooth-pipeline[ray]"' in errors
