"""Packing: averaged weights as fp16 safetensors in `assets/`, with recipe and model cards."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPProcessor, ViTImageProcessorPil

from dreambooth_core.files import atomic_dir, write_json, write_text
from dreambooth_core.models.source import WORLD
from dreambooth_core.models.weights import make_portable, write_pipeline
from tools.pocket.cards import card
from tools.pocket.classifier import HEADS, WEIGHTS_NAME
from tools.pocket.models import build_pipeline
from tools.pocket.pretrain import PARTS, PretrainContext

MODELS = ("pocket-sd", "pocket-clip", "pocket-dino", "pocket-classifier")
LIMIT_BYTES = 24_000_000
#: Hyperparameters and times of the pretraining, and values of the metrics, next to the models.
RECIPE, MEASURED = "recipe.json", "measured.json"


def _image_options(side: int) -> dict[str, Any]:
    return {
        "size": {"height": side, "width": side},
        "do_center_crop": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def pack(context: PretrainContext, *, assets: Path) -> dict[str, int]:
    """Write all models at their last saved steps; returns bytes per model."""
    side = context.settings.image
    with atomic_dir(assets / "pocket-sd") as folder:
        write_pipeline(build_pipeline(context).to(torch.float16), folder)
        write_json(folder / WORLD, HEADS)
    clip = context.clip()
    with atomic_dir(assets / "pocket-clip") as folder:
        clip.half().save_pretrained(folder)
        processor = CLIPImageProcessorPil(**_image_options(side))
        CLIPProcessor(image_processor=processor, tokenizer=context.tokenizer()).save_pretrained(
            folder
        )
        make_portable(folder)
    with atomic_dir(assets / "pocket-dino") as folder:
        context.averaged_model("dino").half().save_pretrained(folder)  # type: ignore[operator]
        options = _image_options(side)
        options.pop("do_center_crop")
        ViTImageProcessorPil(**options).save_pretrained(folder)
        make_portable(folder)
    with atomic_dir(assets / "pocket-classifier") as folder:
        weights = context.averaged_model("classifier").half().state_dict()
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / WEIGHTS_NAME)
        (folder / "config.json").write_text(json.dumps(HEADS, indent=2) + "\n", encoding="utf-8")
    write_json(assets / RECIPE, _recipe(context))
    write_cards(assets)
    return {name: folder_bytes(assets / name) for name in MODELS}


def write_cards(assets: Path, *, measured: Mapping[str, Any] | None = None) -> None:
    """Write all cards from the recipe and the metrics; `measured` replaces older values."""
    path = assets / MEASURED
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    metrics = {**saved, **(measured or {})}
    write_json(path, metrics)
    facts = {**json.loads((assets / RECIPE).read_text(encoding="utf-8")), "measured": metrics}
    for name in MODELS:
        write_text(assets / name / "README.md", card(name, facts))


def folder_bytes(folder: Path) -> int:
    """Total size of all files in a folder tree."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _recipe(context: PretrainContext) -> dict[str, Any]:
    runs = {name: context.open_run(name) for name in PARTS}
    return {
        "seed": context.settings.seed,
        "device": f"{context.device.type} ({platform.machine()}), torch {torch.__version__}",
        "parts": {
            name: {
                "steps": run.step,
                "of": run.settings.steps,
                "batch": run.settings.batch,
                "learning_rate": run.settings.learning_rate,
                "minutes": round(run.seconds / 60, 1),
                "parameters": sum(p.numel() for p in run.model.parameters()),
            }
            for name, run in runs.items()
        },
    }
