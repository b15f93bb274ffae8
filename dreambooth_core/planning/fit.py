"""Whether a run fits a device, and which presets do. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_core import config
from dreambooth_core.config import Settings, TrainSettings
from dreambooth_core.config.sections import SubjectView
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.planning.memory import CONTEXT_MIB, Footprint, Kind, launch_of, predict
from dreambooth_core.planning.shapes import ModelShapes, shapes_of

_POCKET = "assets/pocket-"
_FREE = 0.2
"""The part of a GPU's memory that a recommended preset leaves free."""
_TRAINED = ("adapters", "U-Net in bf16", "U-Net", "U-Net and text encoder")
"""What presets train, the least first."""


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
                "trains": _trained(settings.train),
            }
        )

    def order(row: dict[str, Any]) -> tuple[bool, bool, float]:
        is_other = row["base_model"] != base_model
        return is_other, row["fits"] is not True, -(row["peak_mib"] or 0)

    return sorted(found, key=order)


def recommended(
    presets: Sequence[Mapping[str, Any]], base_model: str, *, have_mib: float, kind: Kind
) -> dict[str, str] | None:
    """The preset to start from on a device, with the reason; None if none is known to fit.

    On a GPU, the preset that trains the most and leaves a part of the memory free: no GPU has
    measured the predictions yet, and a desktop takes its share. Presets of the present base model
    of photographs come before those of others.
    """
    if kind == "cpu":
        own = next((row for row in presets if _is_pocket(row["base_model"])), None)
        why = "Training uses the CPU, where only the pocket models take minutes."
        return {"name": own["name"], "why": why} if own else None
    limit = have_mib * (1 - _FREE) - CONTEXT_MIB
    known = [row for row in presets if row["fits"] and not _is_pocket(row["base_model"])]
    fitting = [row for row in known if row["peak_mib"] <= limit]
    same = [row for row in fitting if row["base_model"] == base_model]
    if not fitting:
        return None
    best = max(same or fitting, key=lambda row: (_TRAINED.index(row["trains"]), -row["peak_mib"]))
    why = (
        f"Of the presets that leave a fifth of {have_mib / 1024:.0f} GiB free, it trains the most: "
        f"the {best['trains']}, in {best['peak_mib'] / 1024:.1f} GiB."
    )
    return {"name": best["name"], "why": why}


def _trained(train: TrainSettings) -> str:
    """What a preset trains, one of _TRAINED."""
    if train.method == "lora":
        return _TRAINED[0]
    if train.train_text_encoder:
        return _TRAINED[-1]
    return _TRAINED[2 if train.weight_dtype == "fp32" else 1]


def _is_pocket(base_model: str) -> bool:
    return base_model.startswith(_POCKET)
