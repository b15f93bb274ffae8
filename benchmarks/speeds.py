"""Measure seconds per update and per image, and write the table that `dreambooth plan` reads.

    python -m benchmarks.speeds [--json]

Runs the real trainer and sampler on the pocket model with one thread. To tolerate other load, it
measures CPU time (wall time on a GPU) and takes the minimum of several updates. The table has two
batch sizes of each kind of training. A third one checks it: the benchmark prints the error of the
table's prediction. Rows of other devices stay unchanged.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import recipes
from benchmarks.common import has_gpu, machine, wall_clock
from benchmarks.recipes import ROOT, Recipe
from dreambooth_core.evaluation.extractors import load_clip, load_dino
from dreambooth_core.models import load, sampling
from dreambooth_core.planning.speed import TABLE_NAME
from dreambooth_core.planning.tables import line_through

TABLE = ROOT / "dreambooth_core" / "planning" / TABLE_NAME
_BASE, _ARCHITECTURE = "assets/pocket-sd", "pocket"
_SIDE_PX = 64
_TABLED, _CHECKED = (1, 8), 4
"""Batch sizes."""
_NUM_UPDATES = 10
_WARM_UP = 2  # the first also checks what moves
_PICTURES = 16
_SAMPLING_STEPS = (2, 12)
_REPEATS = 3


def _now() -> float:
    return wall_clock() if has_gpu() else time.process_time()


def _least(moments: list[float]) -> float:
    return float(np.diff(moments).min())


def seconds_per_step(recipe: Recipe) -> float:
    """The minimum over several updates."""
    moments: list[float] = []
    recipes.run(recipe, ROOT / _BASE, side_px=_SIDE_PX, num_updates=_NUM_UPDATES,
                at_update=lambda: moments.append(_now()))  # fmt: skip
    return _least(moments[_WARM_UP:])


def training(*, as_json: bool) -> list[dict[str, Any]]:
    """Two rows per kind of training; prints the error at the third batch size."""
    rows: list[dict[str, Any]] = []
    kinds = itertools.product(("full", "lora"), ("no", "bf16"), (False, True))
    for method, precision, checkpointing in kinds:
        kind = {"method": method, "mixed_precision": precision,
                "gradient_checkpointing": checkpointing}  # fmt: skip
        found: dict[int, float] = {}
        for batch in (*_TABLED, _CHECKED):
            recipe = Recipe("speed", "pocket", {**kind, "train_batch_size": batch})
            found[recipe.num_rows] = seconds_per_step(recipe)
        checked = 2 * _CHECKED
        tabled = {rows: s for rows, s in found.items() if rows != checked}
        rows += [{**kind, "rows": n, "seconds": round(s, 4)} for n, s in tabled.items()]
        predicted = line_through(list(tabled.items()), checked)
        seconds = {n: round(s, 4) for n, s in found.items()}
        error = round(100 * (predicted / found[checked] - 1), 1)
        if as_json:
            print(json.dumps({**kind, "seconds": seconds, "error_percent": error}), flush=True)
        else:
            print(
                f"{method}, {precision}, checkpointing {checkpointing}, seconds by rows: "
                f"{seconds}, error of the table at {checked} rows: {error:+.1f} %",
                flush=True,
            )
    return rows


def pictures() -> list[dict[str, Any]]:
    """Seconds to sample an image, by sampling steps, and to score one."""
    pipe = load.load_pipeline_folder(ROOT / _BASE, device=_device())
    sampling.give_solver(pipe, "dpm++")
    rows: list[dict[str, Any]] = []
    drawn: list[Any] = []
    for steps in _SAMPLING_STEPS:
        moments = [_now()]
        for _ in range(_REPEATS):
            drawn = sampling.sample(
                pipe, prompts=["a photo of mug"] * _PICTURES, seeds=list(range(_PICTURES)),
                steps=steps, guidance=3.0, resolution=_SIDE_PX, batch_size=_PICTURES,
            )  # fmt: skip
            moments.append(_now())
        rows.append({"sampling_steps": steps, "seconds": round(_least(moments) / _PICTURES, 4)})
    return [*rows, {"sampling_steps": None, "seconds": round(_scoring(drawn), 4)}]


def _scoring(drawn: list[Any]) -> float:
    clip = load_clip("assets/pocket-clip", root=ROOT, device=_device())
    dino = load_dino("assets/pocket-dino", root=ROOT, device=_device())
    moments = [_now()]
    for _ in range(_REPEATS):
        clip.images(drawn)
        dino.images(drawn)
        moments.append(_now())
    return _least(moments) / len(drawn)


def _device() -> torch.device:
    return torch.device("cuda" if has_gpu() else "cpu")


def _lines(rows: list[dict[str, Any]]) -> str:
    return ",\n    ".join(json.dumps(row) for row in rows)


def write(path: Path, made_with: dict[str, Any], **tables: list[dict[str, Any]]) -> None:
    """Replace the rows of this device in all tables of the file."""
    old = json.loads(path.read_bytes())
    device = made_with["device"]
    about = [*(m for m in old["made_with"] if m["device"] != device), made_with]
    parts = [f'"made_with": [\n    {_lines(about)}\n  ]']
    for name, rows in tables.items():
        kept = [row for row in old[name] if row["device"] != device]
        about_rows = {"device": device, "architecture": _ARCHITECTURE, "side_px": _SIDE_PX}
        own = [{**about_rows, **row} for row in rows]
        parts.append(f'"{name}": [\n    {_lines([*kept, *own])}\n  ]')
    path.write_text("{\n  " + ",\n  ".join(parts) + "\n}\n")


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object per row")
    as_json = parser.parse_args().json
    torch.set_num_threads(1)
    kind = "gpu" if has_gpu() else "cpu"
    what = "wall time" if has_gpu() else "CPU time"
    counted = f"{what}, the least of {_NUM_UPDATES - _WARM_UP} updates and {_REPEATS} blocks"
    made_with = {**machine(), "kind": kind, "counted": counted}
    write(TABLE, made_with, training=training(as_json=as_json), pictures=pictures())


if __name__ == "__main__":
    main()
