"""Whether a run fits a device, and which preset would. Torch-free."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dreambooth_core import config
from dreambooth_core.config import Settings
from dreambooth_core.config.sections import SubjectView
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.planning.launches import launch_of
from dreambooth_core.planning.memory import CONTEXT_MIB, Footprint, Kind, predict
from dreambooth_core.planning.shapes import ModelShapes, shapes_of


def memory_of(view: SubjectView | Settings, root: Path, *, kind: Kind) -> Footprint | None:
    """The predicted footprint of the settings' training on each device.

    None for a model of unknown shapes, and under DeepSpeed. Raises SettingsError where the training
    could not be launched.
    """
    model, launch = _shapes(view, root), launch_of(view.train, root)
    if model is None or launch.kind == "DeepSpeed":
        return None
    with_prior = view.prior is not None
    return predict(model, view.train, view.data, with_prior=with_prior, kind=kind, launch=launch)


def architecture_of(view: SubjectView | Settings, root: Path) -> str | None:
    """The name under which the base model's architecture is measured; None for another."""
    model = _shapes(view, root)
    return None if model is None else model.architecture


def _shapes(view: SubjectView | Settings, root: Path) -> ModelShapes | None:
    name = view.base_model.pretrained_model_name_or_path
    folder = root / name
    return shapes_of(name, folder if folder.is_dir() else None)


def describe(footprint: Footprint | None, *, have_mib: float | None) -> dict[str, Any]:
    """The memory part of a plan: parts, peak, and whether it fits (None: not known)."""
    if footprint is None:
        return {"peak_mib": None, "parts_mib": {}, "have_mib": have_mib, "fits": None}
    known = dataclasses.asdict(footprint)
    is_whole = known.pop("is_whole")
    needed = footprint.peak + CONTEXT_MIB
    too_much = have_mib is not None and needed > have_mib
    fits = False if too_much else (True if have_mib is not None and is_whole else None)
    return {
        "peak_mib": round(footprint.peak, 1),
        "parts_mib": {k: None if v is None else round(v, 1) for k, v in known.items()},
        "have_mib": None if have_mib is None else round(have_mib),
        "fits": fits,
    }


def presets_that_fit(
    root: Path, base_model: str, *, have_mib: float | None, kind: Kind
) -> list[dict[str, Any]]:
    """The presets for the same base model with their peaks, the largest that fits first."""
    found: list[dict[str, Any]] = []
    for path in sorted((root / "presets").glob("*.yaml")):
        try:
            settings = config.load_settings(path)
        except DreamBoothError:
            continue  # a file of the user's own that does not load; `preset use` says why
        if settings.base_model.pretrained_model_name_or_path != base_model:
            continue
        try:
            told = describe(memory_of(settings, root, kind=kind), have_mib=have_mib)
        except DreamBoothError:
            told = describe(None, have_mib=have_mib)  # its launch file is not in this folder
        found.append({"name": path.stem, "peak_mib": told["peak_mib"], "fits": told["fits"]})
    return sorted(found, key=lambda row: (row["fits"] is not True, -(row["peak_mib"] or 0)))
