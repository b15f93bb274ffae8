"""One function per stage: settings and records in, record out.

`dvc.yaml` calls them through `python -m dreambooth_core STAGE --subject NAME`, Prefect through a
task. A stage's module is imported when it runs: the data gate needs no torch, a selection no
pipeline.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence

from dreambooth_core.config import nearest
from dreambooth_core.environment import gc_paused
from dreambooth_core.errors import SettingsError
from dreambooth_core.pipeline import preflight
from dreambooth_core.pipeline.common import StageContext
from dreambooth_core.pipeline.full_disk import full_disk_explained
from dreambooth_core.records import Record
from dreambooth_core.workspace import STAGES

__all__ = ["STAGES", "StageContext", "check_stage", "run_stage"]


def check_stage(stage: str, known: Sequence[str] = STAGES) -> None:
    """Raise SettingsError for a stage that does not exist."""
    if stage not in known:
        near = nearest(stage, known)
        raise SettingsError(
            f"no stage has the name {stage!r}",
            allowed=", ".join(known),
            hint=f"did you mean {near}?" if near else None,
        )


def run_stage(context: StageContext, stage: str) -> Record:
    """Run one stage and publish its output in `context.places.stage_dir(stage)`.

    Raises SettingsError and DataError for wrong input, StageError for work that failed, and
    Stopped when the context asked to stop (run the stage again to continue). A stage raises
    SettingsError first for settings with which it, or a stage after it, would fail.
    """
    name = f"{__name__}.{stage.replace('-', '_')}"
    with gc_paused() if name not in sys.modules else contextlib.nullcontext():
        preflight.check_stage(context.places.root, context.settings, context.env, stage)
        module = importlib.import_module(name)
    with full_disk_explained(context.places, stage):
        return module.run(context)
