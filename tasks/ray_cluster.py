"""Work on a Ray cluster; `DREAMBOOTH_RAY=ADDRESS` turns it on.

Every node sees the project's folder. A Ray task completes one block of images, one row of scores
or one case of a benchmark in the store, or one trial of a search, as the flow itself would, and the
flow then finds it there. So the bytes are the same, and whatever a lost node leaves undone is done
by another one, or by the flow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dreambooth_core import environment
from dreambooth_core.config import SubjectView
from dreambooth_core.errors import SettingsError, Stopped
from dreambooth_core.logs import log_fields, logger, present_fields
from dreambooth_core.pipeline import StageContext
from dreambooth_core.ports import Progress, no_progress
from dreambooth_core.supervision import stop_event
from dreambooth_core.workspace import Workspace

if TYPE_CHECKING:
    from dreambooth_core.pipeline.class_images import ClassSet
    from dreambooth_core.pipeline.dreambench import Bench, BenchPlan
    from dreambooth_core.search.sweep import Order, Sweep

T = TypeVar("T")

VARIABLE = "DREAMBOOTH_RAY"

_POLL_S = 0.5
_ANSWER_S = 10.0
_RETRIES = 5
"""How many nodes may die under a task."""


@contextlib.contextmanager
def joined(env: Mapping[str, str]) -> Iterator[Cluster | None]:
    """The cluster that the environment names, or None.

    Its processes end with the block, so that the training has the memory of its device. Raises
    SettingsError if there is no such cluster.
    """
    if not env.get(VARIABLE):
        yield None
        return
    ray = _connected(env[VARIABLE])
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


class Cluster:
    """A Ray cluster that completes the store."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def complete_class_images(self, context: StageContext) -> None:
        """Complete the blocks of the subject's class images. Raises Stopped."""
        from dreambooth_core.pipeline import class_images

        if (prior := context.settings.prior) is not None:
            firsts = class_images.class_set(context, prior).firsts
            self._spread(context, complete_class_block, [(first,) for first in firsts])

    def score_rows(self, context: StageContext, rows: Sequence[str], rounds: int) -> None:
        """Score the first rounds of rows. Raises Stopped."""
        self._spread(context, score_row, [(row, rounds) for row in rows])

    def run_cases(
        self,
        context: StageContext,
        bench: Bench,
        cases: Sequence[tuple[str, str]],
        on_end: Callable[[tuple[str, str], float], None],
    ) -> None:
        """Run cases of a benchmark; `on_end` gets each finished one and its seconds.

        An ablation waits for the first condition of its subject. Raises Stopped.
        """
        remote = self._remote(context, processes=context.settings.train.num_processes)
        tasks: dict[tuple[str, str], Any] = {}
        for subject, condition in cases:
            fields = {**present_fields(), "subject": subject, "stage": condition}
            own = bench.root, bench.out, bench.plan, subject, condition
            first = tasks.get((subject, bench.plan.subject(subject).conditions[0]))
            tasks[subject, condition] = remote.remote(bench.root, fields, run_case, *own, first)
        self._wait(context, tasks, lambda case, _, seconds: on_end(case, seconds))

    def run_trials(
        self, sweep: Sweep, progress: Progress, on_end: Callable[[str, float], None]
    ) -> bool:
        """Run the trials that no worker has begun; `on_end` gets each finished one.

        Every task is a worker of the study that runs one trial. Returns whether all have
        succeeded. Raises Stopped, and SettingsError for files that machines would have to share.
        """
        _refuse_files(self._ray.nodes(), sweep)
        context = dataclasses.replace(sweep.context, progress=progress)
        remote = self._remote(context, processes=sweep.view.train.num_processes)
        fields = {**present_fields(), "subject": sweep.subject, "stage": "trial"}
        variables = {k: v for k, v in sweep.env.items() if k.startswith("MLFLOW_")}
        root = sweep.workspace.root
        own = root, fields, run_trial, sweep.view, sweep.order, root, variables
        tasks = {number: remote.remote(*own) for number in range(sweep.num_left)}
        return self._wait(context, tasks, lambda _, *trial: on_end(*trial))

    def _spread(
        self, context: StageContext, work: Callable[..., str], each: Sequence[tuple[Any, ...]]
    ) -> None:
        """Call `work` once for each tuple, on all nodes. Raises Stopped."""
        # Without this process's environment, and with one lane in a task.
        sent = StageContext(context.settings, context.places, shares_cores=True)
        remote, fields = self._remote(context), dict(present_fields())
        root = context.places.root
        self._wait(context, {own: remote.remote(root, fields, work, sent, *own) for own in each})

    def _remote(self, context: StageContext, *, processes: int = 1) -> Any:
        """`on_node` as a task that Ray repeats on another node if its node dies."""
        needs = self._needs(context, processes)
        return self._ray.remote(**needs, max_retries=_RETRIES)(on_node)

    def _wait(
        self,
        context: StageContext,
        tasks: Mapping[T, Any],
        on_end: Callable[[T, str, float], None] = lambda *_: None,
    ) -> bool:
        """Wait for tasks; end them if this process stops. Returns whether all have succeeded.

        What a task does not do, for another reason than a lost node, is left to this machine,
        which then reports the reason. Raises Stopped.
        """
        # Futures, because a signal handler that raises in ray.wait breaks it.
        left = {task.future(): (name, task) for name, task in tasks.items()}
        failures, start = list[str](), time.monotonic()
        try:
            while left:
                for future in futures.wait(left, _POLL_S, futures.FIRST_COMPLETED).done:
                    name, _ = left.pop(future)
                    self._end(future, functools.partial(on_end, name), failures)
                context.progress(len(tasks) - len(left), len(tasks), "tasks on the Ray cluster")
                if context.should_stop():
                    raise Stopped(
                        "stopped while the Ray cluster worked",
                        hint="run the same command again: it continues",
                    )
        finally:
            for _, task in left.values():
                self._ray.cancel(task)  # like Ctrl-C; a training is saved
            futures.wait(left, context.settings.runtime.stop_grace_s)
        if failures:
            logger.warning(
                "%d of %d tasks failed on the Ray cluster; this machine does their work (%s)",
                len(failures),
                len(tasks),
                failures[0],
            )
        seconds = time.monotonic() - start
        logger.info("the Ray cluster took %.1f s for %d tasks", seconds, len(tasks))
        return not failures

    def _end(
        self,
        task: futures.Future[tuple[str, float]],
        on_end: Callable[[str, float], None],
        failures: list[str],
    ) -> None:
        """Report a finished task and its seconds, or note why it failed."""
        try:
            name, seconds = task.result()
        except self._ray.exceptions.RayError as error:
            failures.append(str(error).strip().splitlines()[-1])
        else:
            on_end(name, seconds)

    def _needs(self, context: StageContext, processes: int) -> dict[str, int]:
        """The cores and GPUs of a task; warns if no node has as many."""
        from dreambooth_core.models import load

        compute = context.settings.compute
        needs = {
            "num_cpus": processes * compute.num_threads,
            "num_gpus": processes * (load.pick_device(compute).type == "cuda"),
        }
        if not any(_is_large_enough(node, **needs) for node in self._ray.nodes()):
            logger.warning(
                "no node of the Ray cluster has %d cores and %d GPUs for a task; waiting for one "
                "(on another machine: `ray start --address ...`)",
                *needs.values(),
            )
        return needs


def _is_large_enough(node: Mapping[str, Any], *, num_cpus: int, num_gpus: int) -> bool:
    has: Mapping[str, float] = node["Resources"]
    return bool(node["Alive"]) and has.get("CPU", 0) >= num_cpus and has.get("GPU", 0) >= num_gpus


def _refuse_files(nodes: Sequence[Mapping[str, Any]], sweep: Sweep) -> None:
    """Raise SettingsError if several machines would write into the same SQLite file."""
    if len({node["NodeManagerAddress"] for node in nodes if node["Alive"]}) < 2:
        return
    stores = {
        "--storage (or DREAMBOOTH_SWEEP_STORAGE)": sweep.order.storage,
        "MLFLOW_TRACKING_URI": sweep.context.tracking_uri,
    }
    if wrong := [name for name, uri in stores.items() if (uri or "sqlite").startswith("sqlite")]:
        raise SettingsError(
            f"the Ray cluster has several machines, but {' and '.join(wrong)} names no server",
            allowed="a study in PostgreSQL and an MLflow server: SQLite files break if several "
            "machines write into them",
            hint=f"see docs/how-to-sweep.md, or unset {VARIABLE}",
        )


def on_node(
    root: Path, fields: Mapping[str, str], work: Callable[..., str], *own: Any
) -> tuple[str, float]:
    """Work in a process of a node, whose log names the run; returns what it did in which time."""
    environment.set_defaults(root)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.INFO)
    start = time.monotonic()
    with log_fields(**fields):
        done = work(*own)
        seconds = time.monotonic() - start
        logger.info("%s took %.1f s", done, seconds)
    return done, seconds


def complete_class_block(context: StageContext, first: int) -> str:
    """Complete the block of class images that starts with `first`."""
    _resident_set(context).complete(first)
    return f"block {first}"


def score_row(context: StageContext, row: str, rounds: int) -> str:
    """Score the first rounds of a row."""
    from dreambooth_core.pipeline import evaluate

    evaluate.score_row(context, row, rounds=rounds)
    return f"{rounds} rounds of {row}"


def run_case(
    root: Path, out: Path, plan: BenchPlan, subject: str, condition: str, _after: object
) -> str:
    """Train and score a case of a benchmark; Ray interrupts it like Ctrl-C."""
    from dreambooth_core.pipeline import dreambench

    with stop_event() as stop:
        bench = dreambench.Bench(root, out, plan, should_stop=stop.is_set, shares_cores=True)
        dreambench.run_case(bench, subject, condition)
    return "the case"


def run_trial(view: SubjectView, order: Order, root: Path, variables: Mapping[str, str]) -> str:
    """Run the next trial of a study, if one is left; Ray interrupts it like Ctrl-C."""
    from dreambooth_core.search.sweep import Sweep

    env = environment.set_defaults(root, **variables)
    with stop_event() as stop:
        sweep = Sweep(
            Workspace(root),
            view,
            order,
            env=env,
            should_stop=stop.is_set,
            progress=lambda _: no_progress,
        )
        if not sweep.has_next():
            return "looking for a trial"
        trial = sweep.run_next()
    return f"trial {trial.number} {trial.state}"


_resident: list[tuple[StageContext, ClassSet]] = []
"""The set of a node's process, whose model is loaded once."""


def _resident_set(context: StageContext) -> ClassSet:
    from dreambooth_core.pipeline import class_images

    if not (_resident and _resident[0][0] == context):
        assert context.settings.prior is not None  # noqa: S101 - no task without one
        own = class_images.class_set(context, context.settings.prior)
        _resident[:] = [(context, own)]
    return _resident[0][1]


def _connected(address: str) -> Any:
    """The module `ray`, connected to the cluster. Raises SettingsError."""
    try:
        import ray
    except ModuleNotFoundError:
        raise SettingsError(
            f"{VARIABLE} names a cluster, but Ray is not installed",
            hint=f'pip install "dreambooth-pipeline[ray]", or unset {VARIABLE}',
        ) from None
    _refuse_silence(address)
    handler = signal.getsignal(signal.SIGTERM)  # Ray replaces it, and with it the orderly stop
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from None
    finally:
        signal.signal(signal.SIGTERM, handler)
    return ray


def _refuse_silence(address: str) -> None:
    """Raise SettingsError if nothing listens at the address: Ray itself waits for ever."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_ANSWER_S):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> SettingsError:
    return SettingsError(
        f"{VARIABLE}: no Ray cluster answers at {address}",
        got=(str(error).strip() or type(error).__name__).splitlines()[0],
        allowed="HOST:PORT of `ray start --head`, on a machine that has joined it",
        hint=f"start one with `ray start --head`, or unset {VARIABLE}",
    )
