"""Class images and rows of scores on a Ray cluster; `DREAMBOOTH_RAY=ADDRESS` turns it on.

Every node sees the project's folder. A Ray task completes one block of images or one row in the
store, as the stage itself would, and the stage then finds it there. So the bytes are the same, and
whatever a lost node leaves undone is done by another one, or by the stage.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core import environment
from dreambooth_core.errors import SettingsError, Stopped
from dreambooth_core.logs import log_fields, logger, present_fields
from dreambooth_core.pipeline import StageContext

if TYPE_CHECKING:
    from dreambooth_core.pipeline.class_images import ClassSet

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

    def _spread(
        self, context: StageContext, work: Callable[..., None], each: Sequence[tuple[Any, ...]]
    ) -> None:
        """Call `work` once for each tuple, on all nodes.

        What a task does not do, for another reason than a lost node, is left to the stage, which
        then reports the reason.
        """
        ray = self._ray
        # Without this process's environment, and with one lane in a task.
        sent = StageContext(context.settings, context.places, shares_cores=True)
        remote = ray.remote(**self._needs(context), max_retries=_RETRIES)(on_node)
        fields, start = dict(present_fields()), time.monotonic()
        left = [remote.remote(fields, work, sent, *own) for own in each]
        failures: list[str] = []
        while left:
            done, left = ray.wait(left, timeout=_POLL_S)
            failures += [text for task in done if (text := self._failure(task))]
            context.progress(len(each) - len(left), len(each), "tasks on the Ray cluster")
            if context.should_stop():
                raise Stopped(
                    "stopped while the Ray cluster worked",
                    hint="run the same command again: it continues",
                )
        if failures:
            logger.warning(
                "%d of %d tasks failed on the Ray cluster; this machine does their work (%s)",
                len(failures),
                len(each),
                failures[0],
            )
        logger.info("the Ray cluster took %.1f s for %d tasks", time.monotonic() - start, len(each))

    def _needs(self, context: StageContext) -> dict[str, int]:
        """The cores and GPUs of a task; warns if no node has as many."""
        from dreambooth_core.models import load

        compute = context.settings.compute
        needs = {
            "num_cpus": compute.num_threads,
            "num_gpus": int(load.pick_device(compute).type == "cuda"),
        }
        if not any(_is_large_enough(node, **needs) for node in self._ray.nodes()):
            logger.warning(
                "no node of the Ray cluster has %d cores and %d GPUs for a task; waiting for one "
                "(on another machine: `ray start --address ...`)",
                *needs.values(),
            )
        return needs

    def _failure(self, task: Any) -> str | None:
        """Why a finished task failed."""
        try:
            self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[-1]
        return None


def _is_large_enough(node: Mapping[str, Any], *, num_cpus: int, num_gpus: int) -> bool:
    has: Mapping[str, float] = node["Resources"]
    return bool(node["Alive"]) and has.get("CPU", 0) >= num_cpus and has.get("GPU", 0) >= num_gpus


def on_node(
    fields: Mapping[str, str], work: Callable[..., None], context: StageContext, *own: Any
) -> None:
    """Work in a process of a node; the log of that process names the run."""
    environment.set_defaults(context.places.root)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.INFO)
    with log_fields(**fields):
        work(context, *own)


def complete_class_block(context: StageContext, first: int) -> None:
    """Complete the block of class images that starts with `first`."""
    start = time.monotonic()
    _resident_set(context).complete(first)
    logger.info("block %d took %.1f s", first, time.monotonic() - start)


def score_row(context: StageContext, row: str, rounds: int) -> None:
    """Score the first rounds of a row."""
    from dreambooth_core.pipeline import evaluate

    start = time.monotonic()
    evaluate.score_row(context, row, rounds=rounds)
    logger.info("%d rounds of %s took %.1f s", rounds, row, time.monotonic() - start)


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
