"""Compare the peak memory of the recipes with the prediction of `dreambooth plan`.

    python -m benchmarks.memory          # with a GPU: the presets on SD 1.4's architecture
    python -m benchmarks.memory          # without: recipes on the pocket model, on the CPU
    python -m benchmarks.memory --model sd1 --recipes sd14-6gb    # SD 1.4, on any device
    python -m benchmarks.memory --model sdxl                      # SDXL, on any device

Each recipe runs with the real trainer in a separate process, and saves nothing before the last
reading. The peak covers all updates from the first. On a GPU, torch's allocator reports peak
allocated and reserved memory, and the benchmark measures steps per second. On a CPU, the events of
the allocator (allocations.py) give the peaks of the updates and of loading. Results go to
benchmarks/results/memory-<device>[-<model>].json. Recipes that are not chosen keep their measured
peaks there and get new predictions; `--recipes none` only updates predictions.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import recipes
from benchmarks.allocations import counting
from benchmarks.common import has_gpu, machine, results_file
from benchmarks.recipes import ROOT, Recipe
from benchmarks.trace_memory import SIDES_PX
from dreambooth_core import config
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.planning.memory import MIB, Footprint, predict
from dreambooth_core.planning.shapes import shapes_of

SHAPES: dict[str, tuple[str, Path | None]] = {
    "pocket": ("assets/pocket-sd", ROOT / "assets" / "pocket-sd"),
    "sd1": ("CompVis/stable-diffusion-v1-4", None),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", None),
}
NUM_UPDATES = 2
"""On a CPU. In the second there is the optimizer's state beside the gradients."""
NUM_UPDATES_GPU = 12
_WARM_UP = 2

PRESETS = [
    Recipe(name, name) for name in ("sd14-24gb", "sd14-16gb", "sd14-12gb", "sd14-6gb", "sd14-lora")
]
"""Without sd14-8gb: DeepSpeed is launched, see docs/memory.md."""


def adapters(**changes: Any) -> dict[str, Any]:
    """Changes of a recipe that trains LoRA adapters with other settings than the preset's."""
    lora = config.load_settings(ROOT / "presets" / "pocket.yaml").train.lora
    assert lora is not None
    return {"method": "lora", "lora": lora.model_dump() | changes}


_CHECKPOINTING = {"gradient_checkpointing": True}
_TEXT = {"train_text_encoder": True}
POCKET = [
    Recipe("fp32, batch 1", "pocket", {"train_batch_size": 1}),
    Recipe("fp32, batch 4", "pocket"),
    Recipe("fp32, batch 8", "pocket", {"train_batch_size": 8}),
    Recipe("fp32, batch 4, no class images", "pocket", with_class=False),
    Recipe("fp32, batch 4, checkpointing", "pocket", _CHECKPOINTING),
    Recipe("fp32, batch 4, two micro-steps", "pocket", {"gradient_accumulation_steps": 2}),
    Recipe("fp32, batch 4, text encoder", "pocket", _TEXT),
    Recipe("fp32, batch 4, average of the weights", "pocket", {"ema_decay": 0.99}),
    Recipe("bf16, batch 4", "pocket", {"mixed_precision": "bf16"}),
    Recipe("bf16, batch 4, checkpointing", "pocket", {"mixed_precision": "bf16", **_CHECKPOINTING}),
    Recipe("fp32, batch 4, 8-bit AdamW", "pocket", {"use_8bit_adam": True}),
    Recipe("LoRA, fp32, batch 4", "pocket", {"method": "lora"}),
    Recipe("LoRA, fp32, batch 4, checkpointing", "pocket", {"method": "lora", **_CHECKPOINTING}),
    Recipe("LoRA, bf16, batch 4", "pocket", {"method": "lora", "mixed_precision": "bf16"}),
    Recipe("LoRA, fp32, batch 4, text encoder", "pocket", {"method": "lora", **_TEXT}),
    Recipe("LoRA, fp32, batch 4, DoRA", "pocket", adapters(use_dora=True)),
    Recipe("LoRA, fp32, batch 4, dropout", "pocket", adapters(lora_dropout=0.1)),
    Recipe(
        "LoRA, fp32, batch 4, DoRA, dropout", "pocket", adapters(use_dora=True, lora_dropout=0.1)
    ),
    *PRESETS,
    Recipe("sd14-6gb, batch 4", "sd14-6gb", {"train_batch_size": 4}),
    Recipe("sd14-6gb, no checkpointing", "sd14-6gb", {"gradient_checkpointing": False}),
    Recipe("sd14-6gb, AdamW", "sd14-6gb", {"optimizer": "adamw"}),
]
RECIPES = {"pocket": POCKET, "sd1": PRESETS, "sdxl": [Recipe("sdxl-lora", "sdxl-lora")]}


def prediction(recipe: Recipe, model: str) -> Footprint:
    """The prediction of `dreambooth plan` for the recipe on this model."""
    shapes, settings = shapes_of(*SHAPES[model]), recipe.settings
    assert shapes is not None
    data = settings.data.model_copy(update={"resolution": SIDES_PX[model]})
    kind = "gpu" if has_gpu() else "cpu"
    return predict(shapes, settings.train, data, with_prior=recipe.with_class, kind=kind)


def on_gpu(recipe: Recipe, base: Path, side_px: int) -> dict[str, Any]:
    """Peaks of torch's allocator on the GPU, and steps per second."""
    moments: list[float] = []

    def at_update() -> None:
        if not moments:
            torch.cuda.reset_peak_memory_stats()
        moments.append(time.monotonic())

    recipes.run(recipe, base, side_px=side_px, num_updates=NUM_UPDATES_GPU, at_update=at_update)
    spent = moments[-1] - moments[_WARM_UP]
    return {
        "steps_per_second": round((NUM_UPDATES_GPU - _WARM_UP) / spent, 3),
        "peak_reserved_mib": round(torch.cuda.max_memory_reserved() / MIB, 1),
        "peak_mib": round(torch.cuda.max_memory_allocated() / MIB, 1),
    }


def on_cpu(recipe: Recipe, base: Path, side_px: int) -> dict[str, Any]:
    """Peaks of torch's allocator on the CPU while networks are loaded and in the updates."""
    with counting() as found:
        recipes.run(recipe, base, side_px=side_px, num_updates=NUM_UPDATES, at_update=found.mark)
    return {
        "loading_mib": round(found.peaks[0] / MIB, 1),
        "between_updates_mib": round(found.at_marks[-1] / MIB, 1),
        "peak_mib": round(max(found.peaks[1:]) / MIB, 1),
    }


def measure(recipe: Recipe, base: Path, model: str) -> dict[str, Any]:
    """A row of the table: measurement, prediction and the error in per cent."""
    side_px = SIDES_PX[model]
    measured = (on_gpu if has_gpu() else on_cpu)(recipe, base, side_px)
    about = {"recipe": recipe.name, "side_px": side_px, "rows": recipe.num_rows}
    return with_prediction({**about, **measured}, recipe, model)


def with_prediction(row: dict[str, Any], recipe: Recipe, model: str) -> dict[str, Any]:
    """The row with the current prediction and its error."""
    if "failed" in row:
        return row
    peak = prediction(recipe, model).peak
    error = round(100 * (peak / row["peak_mib"] - 1), 1)
    return {**row, "predicted_mib": round(peak, 1), "error_percent": error}


def in_own_process(recipe: Recipe, base: Path, model: str) -> dict[str, Any]:
    """Measure in a separate process, so that other recipes' memory does not count."""
    context = multiprocessing.get_context("spawn" if has_gpu() else "fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, recipe, base, model).result()
        except (DreamBoothError, RuntimeError) as error:
            return {"recipe": recipe.name, "failed": str(error)}


def _file(model: str) -> Path:
    usual = "sd1" if has_gpu() else "pocket"
    return results_file("memory", "" if model == usual else f"-{model}")


def _measured_before(model: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The saved rows by recipe, and the device and versions behind them."""
    path = _file(model)
    if not path.is_file():
        return {}, _about(model)
    before = json.loads(path.read_bytes())
    return {row["recipe"]: row for row in before["rows"]}, before["made_with"]


def _about(model: str) -> dict[str, str]:
    versions = {"bitsandbytes": importlib.metadata.version("bitsandbytes")}
    return {**machine(), **versions, "model": model}


def _write(rows: dict[str, dict[str, Any]], model: str, made_with: dict[str, str]) -> None:
    ordered = [rows[r.name] for r in RECIPES[model] if r.name in rows]
    lines = ",\n    ".join(json.dumps(row) for row in ordered)
    head = json.dumps(made_with)
    text = f'{{\n  "made_with": {head},\n  "rows": [\n    {lines}\n  ]\n}}\n'
    _file(model).write_text(text)


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['recipe']:<42} failed: {row['failed']}"
    peak, predicted, error = (row[key] for key in ("peak_mib", "predicted_mib", "error_percent"))
    text = f"peak {peak:8.1f} MiB, predicted {predicted:8.1f}, error {error:+6.1f} %"
    return f"{row['recipe']:<42} {text}"


def main() -> None:
    """Measure the recipes in turn; write and print the table."""
    model = "sd1" if has_gpu() else "pocket"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(RECIPES), default=model)
    parser.add_argument("--recipes", nargs="*", help="names, or none; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object per recipe")
    args = parser.parse_args()
    model, all_recipes = args.model, RECIPES[args.model]
    chosen = [r for r in all_recipes if not args.recipes or r.name in args.recipes]
    rows, made_with = _measured_before(model)
    if chosen == all_recipes:
        rows, made_with = {}, _about(model)
    elif chosen and made_with != _about(model):
        sys.exit(f"{_file(model)} was made with {made_with}: measure all recipes again")
    with recipes.base_of(
        model if chosen else "pocket"
    ) as base:  # building the others takes a minute
        for recipe in all_recipes:
            before = rows.get(recipe.name)
            if recipe in chosen:
                row = in_own_process(recipe, base, model)
            elif before is not None:
                row = with_prediction(before, recipe, model)
            else:
                continue
            print(json.dumps(row) if args.json else _line(row), flush=True)
            if before is None or "failed" not in row:  # a failure does not discard a measured peak
                rows[recipe.name] = row
            _write(rows, model, made_with)


if __name__ == "__main__":
    main()
