"""Peak memory of a training step without a GPU: the real architecture on fake tensors.

    python -m benchmarks.trace_memory activations   # the table that `dreambooth plan` reads
    python -m benchmarks.trace_memory steps         # whole updates of the presets' recipes

Fake tensors have shapes, types and lifetimes and no numbers; torch's MemTracker adds up what is
alive. What a card adds is not in it: kernels' workspaces, the allocator's gaps, the context.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks.architectures import ARCHITECTURES, Architecture
from dreambooth_core import config
from dreambooth_core.config import TrainSettings
from dreambooth_core.training.optimizers import FusedBackward, build_optimizer
from dreambooth_core.training.trainee import ParameterGroup

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "dreambooth_core" / "planning" / "activations.json"
STEPS = ROOT / "benchmarks" / "results" / "memory-traced.json"
DTYPES = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}
MIB = 2**20


def build(architecture: Architecture, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net on fake tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        unet = UNet2DConditionModel.from_config(architecture.unet)
    finally:
        torch.set_default_dtype(before)
    assert isinstance(unet, UNet2DConditionModel)
    return unet.train()


def backward(unet: UNet2DConditionModel, architecture: Architecture, rows: int, side_px: int,
             compute: str, begin: Any = None) -> None:  # fmt: skip
    """One forward and backward pass."""
    side = side_px // 8
    channels = architecture.unet.get("in_channels", 4)
    noisy = torch.randn(rows, channels, side, side)
    text = torch.randn(rows, 77, architecture.unet["cross_attention_dim"])
    added = None
    if architecture.unet.get("addition_embed_type") == "text_time":
        added = {"text_embeds": torch.randn(rows, 1280), "time_ids": torch.randn(rows, 6)}
    times = torch.zeros(rows, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=compute != "no"):
        out = unet(noisy, times, text, added_cond_kwargs=added, return_dict=False)[0]
    loss = (out.float() - torch.randn(rows, channels, side, side)).square().mean()
    if begin is not None:
        begin(loss)
    loss.backward()


def peak(tracker: MemTracker) -> dict[str, float]:
    """MiB at the moment of the peak, in total and by kind."""
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return {str(kind).rpartition(".")[2].lower(): v / MIB for kind, v in snapshot.items()}


def activations(name: str, *, side_px: int, rows: int, weights: str, compute: str,
                checkpointing: bool) -> dict[str, Any]:  # fmt: skip
    """What forward and backward pass need beside weights and gradients."""
    began = time.time()
    with FakeTensorMode():
        unet = build(ARCHITECTURES[name], DTYPES[weights])
        if checkpointing:
            unet.enable_gradient_checkpointing()
        for parameter in unet.parameters():
            parameter.register_post_accumulate_grad_hook(_free)
        tracker = MemTracker()
        tracker.track_external(unet)
        with tracker:
            backward(unet, ARCHITECTURES[name], rows, side_px, compute)
        found = peak(tracker)
    own = found["total"] - found["param"] - found["buffer"]
    row = {"architecture": name, "side_px": side_px, "rows": rows, "weights": weights,
           "compute": compute, "checkpointing": checkpointing, "mib": round(own, 1)}  # fmt: skip
    print(json.dumps(row), f"{time.time() - began:.0f} s", flush=True)
    return row


def _free(parameter: torch.Tensor) -> None:
    parameter.grad = None


def step(preset: str, train: TrainSettings, name: str, side_px: int) -> dict[str, Any]:
    """Two whole updates of a preset's full fine-tune, with its own optimizer."""
    rows = 2 * train.train_batch_size
    with FakeTensorMode():
        unet = build(ARCHITECTURES[name], DTYPES[train.weight_dtype])
        if train.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        group = ParameterGroup("unet", dict(unet.named_parameters()), train.peak_rate)
        optimizer: Any = build_optimizer(SimpleNamespace(groups=(group,)), train)  # pyright: ignore[reportArgumentType]
        fused = FusedBackward(optimizer) if train.fused_backward else None
        tracker = MemTracker()
        tracker.track_external(unet)
        with tracker:
            for number in (1, 2):
                tracker.reset_mod_stats()
                begin = (lambda loss, n=number: fused.begin(n, loss)) if fused else None
                backward(unet, ARCHITECTURES[name], rows, side_px, train.mixed_precision, begin)
                if fused is None:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
        found = peak(tracker)
    row = {
        "preset": preset,
        "architecture": name,
        "side_px": side_px,
        "rows": rows,
        "peak_mib": round(found["total"]),
        "of_it": {kind: round(value) for kind, value in found.items()},
    }
    print(json.dumps(row), flush=True)
    return row


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    made_with = {"torch": torch.__version__, "what": "fake tensors, torch MemTracker; no device"}
    lines = ",\n    ".join(json.dumps(row) for row in rows)
    text = f'{{\n  "made_with": {json.dumps(made_with)},\n  "rows": [\n    {lines}\n  ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _case(name: str, side_px: int, rows: int, *, ckpt: bool, weights: str, compute: str) -> Any:
    return {"name": name, "side_px": side_px, "rows": rows, "weights": weights,
            "compute": compute, "checkpointing": ckpt}  # fmt: skip


CASES: list[dict[str, Any]] = [
    *(_case("pocket", 64, rows, ckpt=ckpt, weights="fp32", compute="no")
      for ckpt in (False, True) for rows in (8, 16)),
    *(_case("pocket", 64, rows, ckpt=False, weights="bf16", compute="bf16") for rows in (8, 16)),
    *(_case("sd1", 512, rows, ckpt=True, weights="bf16", compute="bf16") for rows in (2, 4)),
    _case("sd1", 512, 2, ckpt=True, weights="fp32", compute="bf16"),
    _case("sdxl", 1024, 2, ckpt=True, weights="bf16", compute="bf16"),
    _case("sd1", 512, 2, ckpt=False, weights="bf16", compute="bf16"),
    _case("sd1", 512, 2, ckpt=False, weights="fp32", compute="bf16"),
]  # fmt: skip


def main(what: str) -> None:
    """Trace and write after every row: the whole takes minutes."""
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    if what == "activations":
        for case in CASES:
            rows.append(activations(**case))
            _write(TABLE, rows)
        return
    for preset in ("pocket", "sd14-6gb"):
        settings = config.load_settings(ROOT / "presets" / f"{preset}.yaml")
        name = "pocket" if preset == "pocket" else "sd1"
        rows.append(step(preset, settings.train, name, settings.data.resolution))
        _write(STEPS, rows)


if __name__ == "__main__":
    main(sys.argv[1])
