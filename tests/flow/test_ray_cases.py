"""`dreambench` and `sweep` on a Ray cluster of local nodes: same bytes, lost nodes, stops."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dreambooth_core import files
from dreambooth_core.data.subject_folders import write_classes
from dreambooth_core.waiting import wait_until
from dreambooth_core.workspace import Workspace
from tests import tiny_models
from tests.flow import workspaces
from tests.flow.ray_nodes import Nodes, run, start

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]

CLASSES = {"mug1": "mug", "cat1": "cat", "mug2": "mug"}
"""The first and the last have the same photos, and so the same training."""
NUM_CASES = len(CLASSES) + 3
SWEEP = (
    *("sweep", "mug", "--param", "prior.prior_loss_weight=1"),
    *("--param", "train.max_train_steps=4", "--json", "--trials"),
)
BENCH = ("dreambench", "--subjects-root", "subjects")
ALL = (*BENCH, "--ablations", "1")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A checkout with tiny models, and the subjects."""
    workspace = workspaces.build(tmp_path_factory.mktemp("bench") / "checkout")
    for name in CLASSES:
        count = 3 if name == "cat1" else 4
        tiny_models.build_photos(workspace.root / "subjects" / name, count=count)
    write_classes(workspace.root / "subjects", CLASSES)
    return workspace


@pytest.fixture(scope="module")
def alone(built: Workspace) -> Path:
    """The results without Ray."""
    code, errors = run(built.root, *ALL, "--out", "alone")
    assert code == 0, errors
    return built.root / "alone"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path) as cluster:
        yield cluster


def trainers(store: Path) -> list[psutil.Process]:
    """The processes that train in a store, launchers included."""
    found = list[psutil.Process]()
    for process in psutil.process_iter():
        try:
            if str(store / "train") in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def scores(out: Path) -> list[Path]:
    return list(out.glob("runs/*/*/scores/record.json"))


def wait(condition: Callable[[], object]) -> None:
    assert wait_until(lambda: bool(condition()), timeout_s=400, every_s=0.1)


def ray_worker_of(process: psutil.Process) -> psutil.Process:
    return next(p for p in process.parents() if p.cmdline()[0].startswith("ray::"))


def test_dreambench_outlives_a_lost_task_and_a_lost_node(
    built: Workspace, alone: Path, nodes: Nodes
) -> None:
    out = built.root / "spread"
    victim, _ = nodes.add(), nodes.add()
    process = start(built.root, *ALL, "--out", out.name, DREAMBOOTH_RAY=nodes.address)
    wait(lambda: trainers(out / "store"))
    orphan = trainers(out / "store")[0]
    ray_worker_of(orphan).kill()
    wait(lambda: not orphan.is_running())
    wait(lambda: scores(out))
    nodes.kill(victim)
    assert process.poll() is None
    assert len(scores(out)) < NUM_CASES - 1, "the node was not killed in the middle"
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    assert "failed on the Ray cluster" not in errors
    for name in ("results.json", "results.md"):
        assert (out / name).read_bytes() == (alone / name).read_bytes()
    assert trainers(out / "store") == []
    ended = [line for line in nodes.lines() if "the case took" in line]
    assert all("run=" in line for line in ended)
    cases = {line.split("subject=")[1].rpartition(" the case")[0] for line in ended}
    assert len(cases) == NUM_CASES
    assert len(ended) <= NUM_CASES + 1


def stop_in_training(process: subprocess.Popen[str], store: Path) -> None:
    """Stop a command in its training: it ends with a sentence, and no trainer is left."""
    wait(lambda: trainers(store))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "error: stopped" in errors, errors
    assert "Traceback" not in errors
    wait(lambda: not trainers(store))


def test_stopped_dreambench_leaves_no_task_and_continues_alone(
    built: Workspace, alone: Path, nodes: Nodes
) -> None:
    few = (*BENCH, "--subjects", "mug1,cat1", "--out", "stopped")
    out = built.root / "stopped"
    nodes.add()
    process = start(built.root, *few, DREAMBOOTH_RAY=nodes.address)
    stop_in_training(process, out / "store")
    before = files.tree_hashes(out / "runs")
    time.sleep(5)
    assert files.tree_hashes(out / "runs") == before
    code, errors = run(built.root, *few)
    assert code == 0, errors
    for subject in ("mug1", "cat1"):
        own = Path("runs", subject, "shipped", "scores", "record.json")
        assert (out / own).read_bytes() == (alone / own).read_bytes()


def sweep(root: Path, trials: int) -> dict[str, Any]:
    """The outcome of a search without Ray."""
    return workspaces.answer(root, *SWEEP[:-2], "--trials", str(trials))


def running(root: Path) -> int:
    """The number of trials that run now."""
    query = "select count(*) from trials where state = 'RUNNING'"
    with contextlib.suppress(sqlite3.OperationalError):
        database = f"file:{root / '.state' / 'sweep' / 'mug' / 'study.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(database, uri=True)) as found:
            return int(found.execute(query).fetchone()[0])
    return 0


def results(outcome: dict[str, Any]) -> list[str]:
    """What the trials have tried and scored, in any order."""
    kept = ("state", "unchanged", "changes", "name", "dino", "clip_t", "pres")
    return sorted(json.dumps([trial[key] for key in kept]) for trial in outcome["trials"])


def test_lost_node_repeats_its_trial_and_adds_none(tmp_path: Path, nodes: Nodes) -> None:
    alone, spread = (workspaces.build(tmp_path / name).root for name in ("alone", "spread"))
    expected = sweep(alone, 4)
    victim, _ = nodes.add(), nodes.add()
    process = start(spread, *SWEEP, "4", DREAMBOOTH_RAY=nodes.address)
    wait(lambda: running(spread) == 2)
    nodes.kill(victim)
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    assert "failed on the Ray cluster" not in errors
    outcome = json.loads(output)
    assert results(outcome) == results(expected)
    assert max(trial["number"] for trial in outcome["trials"]) == 4, "no trial was repeated"
    assert outcome["changes"] == expected["changes"]
    assert outcome["confirmed"] == expected["confirmed"]
    on_nodes = {line.split(" took")[0].rpartition("trial ")[2] for line in nodes.lines()}
    done = {f"{trial['number']} complete" for trial in outcome["trials"]}
    assert done <= on_nodes
    assert trainers(spread / ".state") == []


def test_stopped_search_leaves_no_trial_and_continues_alone(tmp_path: Path, nodes: Nodes) -> None:
    root = workspaces.build(tmp_path / "checkout").root
    nodes.add()
    process = start(root, *SWEEP, "2", DREAMBOOTH_RAY=nodes.address)
    stop_in_training(process, root / ".state")
    outcome = sweep(root, 2)
    assert [trial["state"] for trial in outcome["trials"]] == ["complete"] * 2
    assert outcome["trials"][0]["unchanged"]


def test_files_of_several_machines_are_refused(tmp_path: Path, nodes: Nodes) -> None:
    root = workspaces.build(tmp_path / "checkout").root
    nodes.add(host="127.0.0.2")
    code, errors = run(root, *SWEEP, "2", DREAMBOOTH_RAY=nodes.address)
    assert code == 2
    assert "DREAMBOOTH_SWEEP_STORAGE) and MLFLOW_TRACKING_URI names no server" in errors
