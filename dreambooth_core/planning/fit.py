"""Whether a run fits a device, and which presets do. Torch-free."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dreambooth_core import config
from dreambooth_core.config import Settings
from dreambooth_core.config.sections import SubjectView
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.planning.memory import CONTEXT_MIB, Footprint, Kind, launch_of, predict
from dreambooth_core.planning.shapes import ModelShapes, shapes_of


def memory_of(view: SubjectView | Settings, root: Path, *, kind: Kind) -> Footprint | None:
    """Predict the memory of training on each device.

    None if the model's shapes are unknown, and under DeepSpeed. Raises SettingsError if the launch
    file is missing or contradicts the settings.
    """
    model, launch = _shapes(view, root), launch_of(view.train, root)
    if model is None or launch.strategy == "deepspeed":
        return None
    with_prior = view.prior is not None
    return predict(model, view.train, view.data, with_prior=with_prior, kind=kind, launch=launch)


def architecture_of(view: SubjectView | Settings, root: Path) -> str | None:
    """The base model's architecture by its name in the tables, or None if it is not there."""
    model = _shapes(view, root)
    return None if model is None else model.architecture


def _shapes(view: SubjectView | Settings, root: Path) -> ModelShapes | None:
    name = view.base_model.pretrained_model_name_or_path
    folder = root / name
    return shapes_of(name, folder if folder.is_dir() else None)


def describe(footprint: Footprint | None, *, have_mib: float | None) -> dict[str, Any]:
    """Report the parts, the peak, and whether it fits (None if unknown)."""
    if footprint is None:
        return {"peak_mib": None, "parts_mib": {}, "have_mib": have_mib, "fits": None}
    parts = dataclasses.asdict(footprint)
    is_complete = parts.pop("is_complete")
    needed = footprint.peak + CONTEXT_MIB
    too_much = have_mib is not None and needed > have_mib
    fits = False if too_much else (True if have_mib is not None and is_complete else None)
    return {
        "peak_mib": round(footprint.peak, 1),
        "parts_mib": {k: None if v is None else round(v, 1) for k, v in parts.items()},
        "have_mib": None if have_mib is None else round(have_mib),
        "fits": fits,
    }


def presets_that_fit(
    root: Path, base_model: str, *, have_mib: float | None, kind: Kind
) -> list[dict[str, Any]]:
    """Every preset with its model and its peak.

    Those for `base_model` come first, then those that fit, the largest first.
    """
    found: list[dict[str, Any]] = []
    for path in sorted((root / "presets").glob("*.yaml")):
        try:
            settings = config.load_settings(path)
        except DreamBoothError:
            continue  # a broken file of the user's; `preset use` reports why
        try:
            memory = describe(memory_of(settings, root, kind=kind), have_mib=have_mib)
        except DreamBoothError:
            memory = describe(None, have_mib=have_mib)  # its launch file is missing here
        found.append(
            {
                "name": path.stem,
                "base_model": settings.base_model.pretrained_model_name_or_path,
                "peak_mib": memory["peak_mib"],
                "fits": memory["fits"],
            }
        )

    def order(row: dict[str, Any]) -> tuple[bool, bool, float]:
        is_other = row["base_model"] != base_model
        return is_other, row["fits"] is not True, -(row["peak_mib"] or 0)

    return sorted(found, key=order)
