"""Runs of the pipeline's own stages on drawn subjects, in a workspace of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.common import ROOT
from dreambooth_core import config
from dreambooth_core.pipeline import StageContext, run_stage
from dreambooth_core.workspace import Workspace


def subject(folder: Path, noun: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a subject whose photos are in `folder`."""
    return {
        "instance_dir": str(folder),
        "identifier": "sks",
        "class_noun": noun,
        "prompts": None,
        "overrides": dict(overrides or {}),
    }


def shipped_settings() -> Any:
    """The settings of the shipped params.yaml."""
    return YAML().load(ROOT / "params.yaml")


def write_workspace(root: Path, settings: Any, subjects: Mapping[str, dict[str, Any]]) -> Workspace:
    """Write the settings with other subjects, and link the shipped models."""
    root.mkdir(parents=True, exist_ok=True)
    settings["subjects"] = dict(subjects)
    YAML().dump(settings, root / "params.yaml")
    if not (root / "assets").exists():
        (root / "assets").symlink_to(ROOT / "assets")
    return Workspace(root)


def run_stages(workspace: Workspace, name: str, stages: Sequence[str]) -> bool:
    """Run the stages of a subject, unless the last has run; returns whether they ran.

    They run as an experiment of DVC's, so no version is registered.
    """
    if (workspace.stage_dir(name, stages[-1]) / "record.json").is_file():
        return False
    context = StageContext(
        config.load_view(workspace, name), workspace.places(name), env={"DVC_EXP_NAME": name}
    )
    for stage in stages:
        run_stage(context, stage)
    return True
