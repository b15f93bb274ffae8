"""The number of updates after which `train.compile_blocks` pays off on this machine.

    python -m benchmarks.compiling     # with a GPU: SD 1.4's U-Net, random weights, 512 px
    python -m benchmarks.compiling     # without: the pocket model

Runs the real trainer with and without compilation, in separate processes with an empty compilation
cache. The cost of compilation is the additional time of the first updates. The gain is the
difference of later updates (the minimum of several). Cost divided by gain is the break-even. Prints
one JSON object per recipe.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import recipes
from benchmarks.common import has_gpu, machine, results_file, wall_clock
from benchmarks.recipes import Recipe
from benchmarks.trace_memory import SIDES_PX

_NUM_UPDATES = 14
_WARM_UP = 3
"""Updates that may still compile, or check something for the first time."""
_KINDS = {
    "pocket": [
        Recipe("full, fp32, batch 4", "pocket"),
        Recipe("LoRA, fp32, batch 4", "pocket", {"method": "lora"}),
    ],
    "sd1": [Recipe(name, name) for name in ("sd14-16gb", "sd14-6gb", "sd14-lora")],
}


def timed(recipe: Recipe, base: Path, side_px: int, *, compiled: bool) -> dict[str, float]:
    """Seconds per later update, and the additional seconds of the first ones."""
    changes = {**recipe.changes, "compile_blocks": compiled}
    moments: list[float] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # this process runs nothing else
        torch.set_num_threads(1)
        recipes.run(
            Recipe(recipe.name, recipe.preset, changes),
            base,
            side_px=side_px,
            num_updates=_NUM_UPDATES,
            at_update=lambda: moments.append(wall_clock()),
        )
    spans = np.diff(moments)
    step = float(spans[_WARM_UP:].min())
    return {"starting_s": float(spans[:_WARM_UP].sum()) - _WARM_UP * step, "step_s": step}


def measure(recipe: Recipe, base: Path, side_px: int) -> dict[str, Any]:
    """A row: seconds with and without compilation, and the break-even in updates."""
    context = multiprocessing.get_context("spawn")
    sides: list[dict[str, float]] = []
    for compiled in (False, True):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            sides.append(pool.submit(timed, recipe, base, side_px, compiled=compiled).result())
    plain, compiled_side = sides
    cost = max(0.0, compiled_side["starting_s"] - plain["starting_s"])
    gain = plain["step_s"] - compiled_side["step_s"]
    return {
        "recipe": recipe.name,
        "rows": recipe.num_rows,
        "step_s": round(plain["step_s"], 4),
        "compiled_step_s": round(compiled_side["step_s"], 4),
        "compiling_s": round(cost, 1),
        "pays_after_updates": round(cost / gain) if gain > 0 else None,
    }


def main() -> None:
    """Measure, print and write."""
    model = "sd1" if has_gpu() else "pocket"
    rows: list[dict[str, Any]] = []
    with recipes.base_of(model) as base:
        for recipe in _KINDS[model]:
            rows.append(measure(recipe, base, SIDES_PX[model]))
            print(json.dumps(rows[-1]), flush=True)
    result = {"made_with": {**machine(), "model": model}, "rows": rows}
    results_file("compiling").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
