"""One function per stage: settings and records in, record out.

`dvc.yaml` calls them through `python -m dreambooth_core STAGE --subject NAME`, Prefect through a
task. The stages are imported when they run: the data gate needs no torch, a selection no pipeline.
"""

from __future__ import annotations

import contextlib
import importlib
import sys

from dreambooth_core.imports import without_collecting
from dreambooth_core.records import Record
from dreambooth_core.stages import preflight
from dreambooth_core.stages.common import StageContext
from dreambooth_core.workspace import STAGES

__all__ = ["STAGES", "StageContext", "run_stage"]


def run_stage(context: StageContext, subject: str, stage: str) -> Record:
    """Run one stage of a subject; its output stands in `work/<subject>/<stage>` afterwards.

    Raises SettingsError and DataError for what the user must mend (what this machine cannot train
    before the first stage of it), StageError for work that failed, and Stopped when the context
    asked to stop (run it again to continue).
    """
    if stage in preflight.STAGES and (
        problem := preflight.problem(context.workspace, context.view(subject), context.env)
    ):
        raise problem
    name = f"{__name__}.{stage.replace('-', '_')}"
    with without_collecting() if name not in sys.modules else contextlib.nullcontext():
        module = importlib.import_module(name)
    return module.run(context, subject)
