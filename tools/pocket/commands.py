"""What the commands of `python -m tools.pocket` do, free of argument parsing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from dreambooth_core.files import atomic_file
from tools.pocket import evaluate
from tools.pocket.bundle import Bundle, from_assets, from_state
from tools.pocket.loop import step_generator
from tools.pocket.pipeline import sample
from tools.pocket.pretrain import PARTS, Workshop, pretrain
from tools.pocket.sample import contact_sheet, draw_prompts
from tools.pocket.settings import PocketSettings


def open_workshop(
    settings: PocketSettings, *, state: Path, device: str, threads: int, say: Callable[[str], None]
) -> Workshop:
    """The workshop on the device named; "auto" takes a GPU where there is one."""
    torch.set_num_threads(threads or os.cpu_count() or 1)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return Workshop(settings=settings, state=state, device=torch.device(chosen), say=say)


def pretrain_parts(shop: Workshop, *, part: str, until: float | None) -> None:
    """Trains one part, or all in the order in which they need one another."""
    for name in PARTS if part == "all" else (part,):
        pretrain(shop, part=name, until=until)


def measure(
    models: Bundle, *, part: str, assets: Path, num_samples: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Measures the bars of one part or of all."""
    bars: list[evaluate.Bar] = []
    for name, judge in evaluate.PARTS.items():
        if part not in ("all", name):
            continue
        say(f"measuring {name}")
        bars += judge(models, num_samples=num_samples) if name == "unet" else judge(models)
    if part == "all":
        bars += evaluate.weight_bars(assets)
    return {bar.name: bar.as_json() for bar in bars}


def as_table(measured: dict[str, dict[str, Any]]) -> str:
    """The figures as aligned lines: name, value, bar, whether it holds."""
    words = {True: "holds", False: "MISSED", None: ""}
    return "\n".join(
        f"{name:32} {bar['value']:>10.4f}   {bar['target']:12} {words[bar['holds']]}"
        for name, bar in measured.items()
    )


def write_sheet(
    pipeline: StableDiffusionPipeline,
    *,
    prompt: str | None,
    num: int,
    seed: int,
    steps: int,
    guidance: float,
    out: Path,
) -> None:
    """A page of `num` pictures of one prompt, or of random full captions."""
    generator = step_generator(seed, part="sheet", step=0)
    prompts = [prompt] * num if prompt else draw_prompts(num, generator=generator)
    pictures = sample(pipeline, prompts, seed=seed, steps=steps, guidance=guidance)
    with atomic_file(out) as aside:
        contact_sheet(pictures, prompts).save(aside, format="PNG", optimize=True)


def open_bundle(shop: Workshop, *, assets: Path, packed: bool) -> Bundle:
    """The packed models, or those in training."""
    return from_assets(shop, assets=assets) if packed else from_state(shop)
