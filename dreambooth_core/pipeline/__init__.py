"""One function per stage: settings and records in, record out.

`dvc.yaml` calls them through `python -m dreambooth_core STAGE --subject NAME`, Prefect through a
task. The stages are imported when they run: the data gate needs no torch, a selection no pipeline.
"""

from __future__ import annotations

import contextlib
import importlib
import sys

from dreambooth_core.environment import gc_paused
from dreambooth_core.pipeline import preflight
from dreambooth_core.pipeline.common import StageContext
from dreambooth_core.records import Record
from dreambooth_core.workspace import STAGES

__all__ = ["STAGES", "StageContext", "run_stage"]


def run_stage(context: StageContext, subject: str, stage: str) -> Record:
    """Run one stage of a subject; its output stands in `work/<subject>/<stage>` afterwards.

    Raises SettingsError and DataError for what the user must mend, StageError for work that
    failed, and Stopped when the context asked to stop (run it again to continue). Settings that
    this machine cannot train are refused by every stage that only a training is for.
    """
    name = f"{__name__}.{stage.replace('-', '_')}"
    with gc_paused() if name not in sys.modules else contextlib.nullcontext():
        if stage in preflight.STAGES:
            _refuse_the_impossible(context, subject)
        module = importlib.import_module(name)
    return module.run(context, subject)


def _refuse_the_impossible(context: StageContext, subject: str) -> None:
    problem = preflight.problem(context.workspace, context.view(subject), context.env)
    if problem is not None:
        raise problem
