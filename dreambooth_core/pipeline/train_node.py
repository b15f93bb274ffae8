"""A training on several machines: the part of a machine that does not lead."""

from __future__ import annotations

from collections.abc import Callable

from dreambooth_core.errors import CorruptRecordError, SettingsError, StageError, Stopped
from dreambooth_core.logs import logger
from dreambooth_core.pipeline import train
from dreambooth_core.pipeline.common import StageContext
from dreambooth_core.training.checkpoints.published import finished_run
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.launch import launcher
from dreambooth_core.training.launch.accelerate_config import RANK, RENDEZVOUS, node_of
from dreambooth_core.waiting import wait_until

_POLL_S = 2.0


def take_part(open_context: Callable[[], StageContext], *, wait_s: float) -> None:
    """Start this machine's processes of the subject's training and wait for their end.

    The machine of rank 0 runs the flow (or the train stage). This one waits for its job, in the
    folder that both see, but no longer than `wait_s` seconds, and opens the context anew for each
    look, as the settings may change meanwhile. Raises Stopped, StageError and SettingsError.
    """
    context = open_context()
    node = node_of(context.env)
    if node is None or node.rank == 0:
        raise SettingsError(
            "train-node is for the machines that do not lead",
            got="rank 0" if node else "neither rank nor rendezvous",
            allowed=f"{RANK}=1 or higher, and {RENDEZVOUS}=host:port of machine 0",
        )
    job = _wait_for_job(open_context, wait_s=wait_s)
    if finished_run(job) is not None:
        return
    outcome = launcher.run_trainer(
        job,
        grace_s=context.settings.runtime.stop_grace_s,
        on_line=logger.info,
        should_stop=context.should_stop,
        node=node,
    )
    if outcome.how == "stopped":
        raise Stopped("the training was stopped", hint="start it again on every machine")


def _wait_for_job(open_context: Callable[[], StageContext], *, wait_s: float) -> TrainJob:
    """The job of the settings as they are now, as soon as the leading machine has written it.

    Raises StageError after `wait_s` seconds: the leading machine may have failed.
    """
    context = open_context()
    subject = context.settings.name
    logger.info(
        "waiting at most %g min for the machine of rank 0 to come to the training of %s",
        wait_s / 60,
        subject,
    )
    found = wait_until(
        lambda: context.should_stop() or _find_job(open_context),
        timeout_s=wait_s,
        every_s=_POLL_S,
    )
    if isinstance(found, TrainJob):
        return found
    raise Stopped("stopped before the training began") if found else _too_late(subject, wait_s)


def _find_job(open_context: Callable[[], StageContext]) -> TrainJob | None:
    try:
        return TrainJob.load(train.make_job(open_context()).path)
    except CorruptRecordError:
        return None  # the cache or the job is not there yet


def _too_late(subject: str, wait_s: float) -> StageError:
    return StageError(
        f"the machine of rank 0 has not come to the training of {subject}",
        got=f"no job of these settings after {wait_s / 60:g} min",
        hint="look at that machine's log: it has failed, has other settings, sees another folder, "
        "or still draws class images; --wait-min waits longer",
    )
