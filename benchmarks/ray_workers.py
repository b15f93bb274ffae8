"""Class images per second by number of Ray workers with one core each, and Ray's cost per task.

`python -m benchmarks.ray_workers` starts a head and two nodes on this machine. In each round it
measures this process, one worker and two workers one after the other, because other work on the
machine slows all of them; the ratios are those of each round.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks.common import ROOT
from dreambooth_core import config, files
from dreambooth_core.environment import set_defaults
from dreambooth_core.pipeline import StageContext
from dreambooth_core.workspace import Workspace
from tasks.ray_cluster import complete_class_block, on_node

SUBJECT = "mug"
ROUNDS, BLOCKS, EMPTY = 7, 4, 300
RESULT = ROOT / "benchmarks" / "results" / "ray-workers-cpu.json"

Complete = Callable[[Sequence[int]], None]


def do_nothing(_context: StageContext) -> str:
    """The work of an empty task."""
    return "nothing"


def context_in(folder: Path) -> StageContext:
    """The shipped settings and models with an empty store."""
    for name in ("params.yaml", "assets", "presets"):
        (folder / name).symlink_to(ROOT / name)
    own = Workspace(folder)
    return StageContext(config.load_view(own, SUBJECT), own.places(SUBJECT), shares_cores=True)


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ways(context: StageContext) -> dict[str, Complete]:
    """Without Ray, on one node, and on both."""

    def alone(firsts: Sequence[int]) -> None:
        for first in firsts:
            complete_class_block(context, first)

    root = context.places.root

    def on(nodes: str) -> Complete:
        remote: Any = ray.remote(num_cpus=1, resources={nodes: 1})(on_node)

        def complete(firsts: Sequence[int]) -> None:
            own = [(root, {}, complete_class_block, context, first) for first in firsts]
            ray.get([remote.remote(*each) for each in own])

        return complete

    return {"without Ray": alone, "1 worker": on("first"), "2 workers": on("each")}


def empty_task_ms(context: StageContext) -> float:
    """What a task without work costs a worker that has taken the one before."""
    remote: Any = ray.remote(num_cpus=1, resources={"first": 1})(on_node)
    own = context.places.root, dict[str, str](), do_nothing, context
    total = seconds(lambda: ray.get([remote.remote(*own) for _ in range(EMPTY)]))
    return 1000 * total / EMPTY


def measure(folder: Path) -> dict[str, Any]:
    """The rates of every round."""
    set_defaults(folder)
    context = context_in(folder)
    assert context.settings.prior is not None
    size, first = context.settings.prior.sample_batch_size, 0
    rates: dict[str, list[float]] = {}
    empty: list[float] = []
    for turn in range(ROUNDS + 1):
        for name, complete in ways(context).items():
            firsts = [first + number * size for number in range(BLOCKS)]
            first += BLOCKS * size
            rate = BLOCKS * size / seconds(lambda c=complete, f=firsts: c(f))
            if turn > 0:  # in the first round, processes load their models
                rates.setdefault(name, []).append(rate)
        empty.append(empty_task_ms(context))
        print(turn, {name: [round(rate, 2) for rate in found] for name, found in rates.items()})
    return {"images per task": size, "empty task, ms": spread(empty[1:]), **compared(rates)}


def compared(rates: dict[str, list[float]]) -> dict[str, Any]:
    """The rates, and their ratios within a round."""

    def ratio(above: str, below: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(rates[above], rates[below], strict=True)])

    return {
        "images per second": {name: spread(found) for name, found in rates.items()},
        "1 worker / without Ray": ratio("1 worker", "without Ray"),
        "2 workers / 1 worker": ratio("2 workers", "1 worker"),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    """Measure, and write the result file."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - 15 starves beside other work
    before = os.getloadavg()[0]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        cluster.add_node(num_cpus=1, resources={"first": 1, "each": 1})
        cluster.add_node(num_cpus=1, resources={"each": 1})
        ray.init(address=cluster.address, log_to_driver=False)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder))
    finally:
        ray.shutdown()
        cluster.shutdown()
    load = {"before": round(before, 1), "after": round(os.getloadavg()[0], 1)}
    result = {"cores": os.cpu_count(), "load of the machine": load, "rounds": ROUNDS, **found}
    files.write_json(RESULT, result)
    print(result)


if __name__ == "__main__":
    main()
