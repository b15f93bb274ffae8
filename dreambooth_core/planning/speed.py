"""The duration of a run, from a table of measured seconds (speeds.json). Torch-free.

`python -m benchmarks.speeds` writes the table. The time of an update is linear in its rows, and the
time of an image in its sampling steps.
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
"""The settings that distinguish kinds of training in the table."""


@dataclass(frozen=True)
class Device:
    """The device of the run. `name` is the GPU's name, or None if unknown."""

    kind: Kind
    name: str | None


@dataclass(frozen=True)
class Times:
    """Seconds per stage, and the device that they were measured on.

    None for a stage that was not measured. Start-up, loading and saving are not included. An early
    stop saves a part of `train` and `evaluate`.
    """

    measured_on: str | None
    step: float | None = None
    class_images: float | None = None
    train: float | None = None
    evaluate: float | None = None
    confirm: float | None = None


def times_of(view: SubjectView, architecture: str | None, device: Device, *, prompts: int) -> Times:
    """Predict the seconds of a subject's stages. `prompts` is the size of its prompt suite."""
    known = [row for row in read_table(TABLE_NAME)["made_with"] if _is_measured_on(row, device)]
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
        evaluate=_times(scored, round(drawn * _complete_rows(view))),
        confirm=_times(scored, drawn),
    )


def _complete_rows(view: SubjectView) -> float:
    """The images of the evaluate stage, in complete rows.

    A race draws one round of every checkpoint, and about as much as a complete row after it.
    """
    checkpoints = math.ceil(view.train.max_train_steps / view.train.checkpointing_steps)
    evaluate = view.evaluate
    return 1 + (checkpoints / evaluate.images_per_prompt + 1 if evaluate.racing else checkpoints)


def describe(times: Times, ahead: Collection[str]) -> dict[str, Any]:
    """Report the seconds per step, of each stage that is `ahead`, and in total.

    `total_seconds` is None if a stage was not measured or no stage is ahead.
    """
    stages = {
        "class-images": times.class_images,
        "train": times.train,
        "evaluate": times.evaluate,
        "confirm": times.confirm,
    }
    due = {stage: seconds for stage, seconds in stages.items() if stage in ahead}
    known = [seconds for seconds in due.values() if seconds is not None]
    return {
        "measured_on": times.measured_on,
        "seconds_per_step": None if times.step is None else round(times.step, 4),
        "stage_seconds": {s: None if t is None else round(t, 1) for s, t in due.items()},
        "total_seconds": round(sum(known), 1) if known and len(known) == len(due) else None,
    }


def _is_measured_on(row: dict[str, Any], device: Device) -> bool:
    """Whether a row is for this device. GPUs must have the same name; all CPUs count as equal."""
    return row["kind"] == device.kind and (device.kind == "cpu" or row["device"] == device.name)


def _times(seconds: float | None, number: int) -> float | None:
    return None if seconds is None else seconds * number


def _rows(table: str, measured: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_table(TABLE_NAME)[table]
    return [row for row in found if measured.items() <= row.items()]


def _seconds_per_step(view: SubjectView, measured: list[dict[str, Any]]) -> float | None:
    """Only training of the uncompiled U-Net with plain AdamW is measured."""
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
