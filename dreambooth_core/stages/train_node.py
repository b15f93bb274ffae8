"""Several machines: which one this is, and how one takes part in a training that another leads."""

from __future__ import annotations

import time

from dreambooth_core.errors import CorruptRecordError, SettingsError, Stopped
from dreambooth_core.stages import train
from dreambooth_core.stages.common import StageContext, logger
from dreambooth_core.training import launch
from dreambooth_core.training.job import TrainJob
from dreambooth_core.training.launch_options import RANK, RENDEZVOUS, node_of
from dreambooth_core.training.published import finished_run

_POLL_S = 2.0


def take_part(context: StageContext, subject: str) -> None:
    """Start this machine's processes of the subject's training and wait for their end.

    The machine of rank 0 runs the flow (or the train stage); this one waits until it has come to
    the training, whose folder both see. Raises Stopped, StageError and SettingsError.
    """
    node = node_of(context.env)
    if node is None or node.rank == 0:
        raise SettingsError(
            "train-node is for the machines that do not lead",
            got="rank 0" if node else "neither rank nor rendezvous",
            allowed=f"{RANK}=1 or higher, and {RENDEZVOUS}=host:port of machine 0",
        )
    job = _wait_for_job(context, subject)
    if finished_run(job) is not None:
        return
    outcome = launch.run_trainer(
        job,
        grace_s=context.view(subject).runtime.stop_grace_s,
        on_line=logger.info,
        should_stop=context.should_stop,
        node=node,
    )
    if outcome.how == "stopped":
        raise Stopped("the training was stopped", hint="start it again on every machine")


def _wait_for_job(context: StageContext, subject: str) -> TrainJob:
    """The job of the settings as they are now, as soon as the leading machine has written it."""
    logger.info("waiting for the machine of rank 0 to come to the training of %s", subject)
    while not context.should_stop():
        try:
            job = train.make_job(context, context.view(subject))
            return TrainJob.load(job.path)
        except CorruptRecordError:
            time.sleep(_POLL_S)  # the cache or the job is not there yet
    raise Stopped("stopped before the training began")
