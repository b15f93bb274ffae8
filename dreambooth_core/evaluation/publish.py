"""What the stage evaluate publishes: images, tables, curves, and the record last."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dreambooth_core import files
from dreambooth_core.errors import StageError
from dreambooth_core.evaluation.scores import STEP_0
from dreambooth_core.evaluation.store import RowImages
from dreambooth_core.records import CheckpointScore, Evaluation, Harness, ScoreRow, Scores

CURVES = ("clip_t", "clip_i", "dino", "pres", "div")
"""Columns of `curves.csv`, after the step."""


def make_evaluation(harness: Harness, rows: Sequence[CheckpointScore]) -> Evaluation:
    """The rows as one record: step 0, checkpoints by step, real. Raises StageError without step 0.

    The text range of an evaluation is that of step 0.
    """
    base = next((row for row in rows if row.name == STEP_0), None)
    if base is None or base.text_range is None:
        raise StageError(f"the scores hold no row {STEP_0!r}", hint="score the base model as well")
    ordered = sorted(rows, key=lambda row: (row.step is None, row.step or 0))
    return Evaluation(harness=harness, text_range=base.text_range, rows=tuple(ordered))


def scores_of(evaluation: Evaluation) -> Scores:
    """`evaluate/scores.json` (C6): the same rows without their samples."""
    fields = ScoreRow.model_fields
    return Scores(
        harness=evaluation.harness,
        text_range=evaluation.text_range,
        rows=tuple(
            ScoreRow(**{name: getattr(row, name) for name in fields}) for row in evaluation.rows
        ),
    )


def publish_evaluation(
    out: Path,
    *,
    evaluation: Evaluation,
    images: Mapping[str, RowImages],
    draw_grid: Callable[[Path], None],
) -> None:
    """Write the stage's folder: images of every row, scores.json, curves.csv, grid, record last.

    `draw_grid` is given the path of `grid.png` and writes it.
    """
    names = image_names(evaluation.harness)
    for row, paths in images.items():
        folder = out / "images" / row_folder(row)
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in zip(names, [*paths.suite, *paths.class_prompt], strict=True):
            shutil.copyfile(path, folder / name)
    scores_of(evaluation).write(out, "scores.json")
    files.write_text(out / "curves.csv", _curves_csv(evaluation))
    draw_grid(out / "grid.png")
    evaluation.write(out)


def row_folder(name: str) -> str:
    """The folder of a row's images: its name without spaces, such as step-0."""
    return name.replace(" ", "-")


def image_names(harness: Harness) -> list[str]:
    """File names of a row's images: `<pp>-<ss>.png` by prompt and seed, then `class-<ss>.png`."""
    each = len(harness.seeds) // len(harness.prompts)
    suite = [f"{p:02d}-{s:02d}.png" for p in range(len(harness.prompts)) for s in range(each)]
    return suite + [f"class-{i:02d}.png" for i in range(len(harness.class_seeds))]


def _curves_csv(evaluation: Evaluation) -> str:
    lines = [",".join(("step", *CURVES))]
    for row in evaluation.rows:
        if row.step is not None:
            values = [getattr(row, name) for name in CURVES]
            cells = ["" if value is None else f"{value.mean:.6f}" for value in values]
            lines.append(",".join((str(row.step), *cells)))
    return "\n".join(lines) + "\n"
