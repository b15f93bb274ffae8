"""Packing: the averaged weights as fp16 safetensors under `assets/`, each with its card."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPProcessor, ViTImageProcessorPil

from dreambooth_core.files import atomic_dir
from dreambooth_core.pocket.cards import card
from dreambooth_core.pocket.classifier import HEADS, WEIGHTS_NAME
from dreambooth_core.pocket.pipeline import build_pipeline
from dreambooth_core.pocket.pretrain import PARTS, Workshop

MODELS = ("pocket-sd", "pocket-clip", "pocket-dino", "pocket-classifier")
LIMIT_BYTES = 24_000_000


def _image_options(side: int) -> dict[str, Any]:
    return {
        "size": {"height": side, "width": side},
        "do_center_crop": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def pack(shop: Workshop, *, assets: Path, measured: Mapping[str, Any] | None) -> dict[str, int]:
    """Writes every model that has begun its training; returns bytes per model."""
    side = shop.settings.image
    facts = _facts(shop, measured=measured)
    with atomic_dir(assets / "pocket-sd") as folder:
        build_pipeline(shop).to(torch.float16).save_pretrained(folder)
        (folder / "README.md").write_text(card("pocket-sd", facts), encoding="utf-8")
    clip = shop.clip()
    with atomic_dir(assets / "pocket-clip") as folder:
        clip.half().save_pretrained(folder)
        processor = CLIPImageProcessorPil(**_image_options(side))
        CLIPProcessor(image_processor=processor, tokenizer=shop.tokenizer()).save_pretrained(folder)
        (folder / "README.md").write_text(card("pocket-clip", facts), encoding="utf-8")
    with atomic_dir(assets / "pocket-dino") as folder:
        shop.trained("dino").half().save_pretrained(folder)  # type: ignore[operator]
        options = _image_options(side)
        options.pop("do_center_crop")
        ViTImageProcessorPil(**options).save_pretrained(folder)
        (folder / "README.md").write_text(card("pocket-dino", facts), encoding="utf-8")
    with atomic_dir(assets / "pocket-classifier") as folder:
        weights = {
            k: v.contiguous() for k, v in shop.trained("classifier").half().state_dict().items()
        }
        save_file(weights, folder / WEIGHTS_NAME)
        (folder / "config.json").write_text(json.dumps(HEADS, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card("pocket-classifier", facts), encoding="utf-8")
    return {name: folder_bytes(assets / name) for name in MODELS}


def folder_bytes(folder: Path) -> int:
    """The size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _facts(shop: Workshop, *, measured: Mapping[str, Any] | None) -> dict[str, Any]:
    runs = {name: shop.open(name) for name in PARTS}
    return {
        "seed": shop.settings.seed,
        "device": f"{shop.device.type} ({platform.machine()}), torch {torch.__version__}",
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
        "measured": dict(measured or {}),
    }
