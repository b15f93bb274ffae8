"""How long a run takes, from a table of measured seconds (speeds.json). Torch-free.

`python -m benchmarks.speeds` makes the table. An update takes a fixed part and a part for each row;
a picture a fixed part and a part for each sampling step.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dreambooth_core.config.sections import SubjectView
from dreambooth_core.planning.memory import Kind
from dreambooth_core.planning.tables import line_through, read_table

TABLE_NAME = "speeds.json"
_KIND = ("method", "mixed_precision", "gradient_checkpointing")
"""The settings by which kinds of training are told apart in the table."""


@dataclass(frozen=True)
class Device:
    """What would compute: `name` is the card's, or None where it is not known."""

    kind: Kind
    name: str | None


@dataclass(frozen=True)
class Times:
    """Seconds of the stages that were measured, and on which device.

    A part that was not measured there is None. Loading, starting and writing are in none of them.
    """

    measured_on: str | None
    step: float | None = None
    class_images: float | None = None
    train: float | None = None
    evaluate: float | None = None


def times_of(view: SubjectView, architecture: str | None, device: Device, *, prompts: int) -> Times:
    """The seconds of a subject's stages; `prompts` is the number of those in its suite."""
    known = [row for row in read_table(TABLE_NAME)["made_with"] if _is_that(row, device)]
    if not known:
        return Times(measured_on=None)
    name: str = known[0]["device"]
    measured = {"device": name, "architecture": architecture, "side_px": view.data.resolution}
    training, pictures = (_rows(table, measured) for table in ("training", "pictures"))
    prior, evaluate = view.prior, view.evaluate
    step = _seconds_per_step(view, training)
    made = _seconds_to_draw(pictures, steps=prior.num_inference_steps if prior else 1)
    scored = _seconds_to_draw(pictures, steps=evaluate.num_inference_steps, score=True)
    drawn = evaluate.images_per_prompt * prompts + evaluate.num_class_prompt_images
    return Times(
        measured_on=name,
        step=step,
        class_images=_times(made, prior.num_class_images if prior else 0),
        train=_times(step, view.train.max_train_steps),
        evaluate=_times(scored, drawn * (1 + _num_checkpoints(view))),
    )


def describe(times: Times, ahead: Collection[str]) -> dict[str, Any]:
    """The time part of a plan: seconds a step, of each stage `ahead`, and of these together.

    `total_seconds` is None where one of them was not measured, or where none is ahead.
    """
    stages = {
        "class-images": times.class_images,
        "train": times.train,
        "evaluate": times.evaluate,
    }
    due = {stage: seconds for stage, seconds in stages.items() if stage in ahead}
    known = [seconds for seconds in due.values() if seconds is not None]
    return {
        "measured_on": times.measured_on,
        "seconds_per_step": None if times.step is None else round(times.step, 4),
        "stage_seconds": {s: None if t is None else round(t, 1) for s, t in due.items()},
        "total_seconds": round(sum(known), 1) if known and len(known) == len(due) else None,
    }


def _is_that(row: dict[str, Any], device: Device) -> bool:
    """A GPU is known by its name. Any CPU is compared with the one that was measured."""
    return row["kind"] == device.kind and (device.kind == "cpu" or row["device"] == device.name)


def _times(seconds: float | None, number: int) -> float | None:
    return None if seconds is None else seconds * number


def _num_checkpoints(view: SubjectView) -> int:
    return math.ceil(view.train.max_train_steps / view.train.checkpointing_steps)


def _rows(table: str, measured: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_table(TABLE_NAME)[table]
    return [row for row in found if measured.items() <= row.items()]


def _seconds_per_step(view: SubjectView, measured: list[dict[str, Any]]) -> float | None:
    """Of plain AdamW on the U-Net as it is, the only kind that is measured."""
    train = view.train
    if not train.uses_fused_adamw or train.train_text_encoder or train.compile_blocks:
        return None
    points = [
        (row["rows"], row["seconds"])
        for row in measured
        if all(row[key] == getattr(train, key) for key in _KIND)
    ]
    rows = train.train_batch_size * (2 if view.prior else 1)
    return _times(line_through(points, rows), train.gradient_accumulation_steps) if points else None


def _seconds_to_draw(
    measured: list[dict[str, Any]], *, steps: int, score: bool = False
) -> float | None:
    seconds = {row["sampling_steps"]: row["seconds"] for row in measured}
    if not seconds:
        return None
    scoring = seconds.pop(None)
    return line_through(list(seconds.items()), steps) + (scoring if score else 0.0)
