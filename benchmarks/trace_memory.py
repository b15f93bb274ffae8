"""What forward and backward pass hold, on fake tensors: the table that `dreambooth plan` reads.

    python -m benchmarks.trace_memory

Real architectures at their real size, without their weights and without a GPU (see tracing.py). A
row of the device "gpu" has the norms in fp32, as autocast computes them there; on a CPU it leaves
them in the type they get. What a card adds (kernels' workspaces, the allocator's gaps, the context)
is not in it. benchmarks/memory.py holds the outcome against real runs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.architectures import ARCHITECTURES, Architecture
from benchmarks.tracing import HeldBytes
from dreambooth_core.config import LoraSettings
from dreambooth_core.models.denoiser import Denoiser
from dreambooth_core.models.lora import add_adapter
from dreambooth_core.planning.memory import UPDATE_BYTES

TABLE = Path(__file__).parents[1] / "dreambooth_core" / "planning" / "activations.json"
SIDES_PX = {"pocket": 64, "sd1": 512, "sdxl": 1024}
_DTYPES = {"fp32": torch.float32, "half": torch.bfloat16}
_LORA = LoraSettings(
    rank=4, lora_alpha=4.0, lora_dropout=0.0, lora_layers=("to_k", "to_q", "to_v", "to_out.0")
)
_MIB = 2**20


def build(
    architecture: Architecture, *, method: str, held: str, text: bool, checkpointing: bool
) -> Denoiser:
    """The networks of a training, in training mode."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(_DTYPES[held])
    try:
        trained_text = architecture.build_text() if text else {}
        denoiser = Denoiser(architecture.build_unet(), trained_text)
    finally:
        torch.set_default_dtype(before)
    for part, module in denoiser.parts.items():
        if method == "lora":
            with mock.patch.object(torch.nn.Module, "to", lambda module, *_, **__: module):
                add_adapter(module, _LORA, part=part, seed=0)  # fake tensors cannot be moved
        if checkpointing:
            switch: Any = module
            (switch.enable_gradient_checkpointing if part == "unet"
             else switch.gradient_checkpointing_enable)()  # fmt: skip
    return denoiser.train()


def passes(denoiser: Denoiser, architecture: Architecture, *, rows: int, side_px: int,
           compute: str) -> None:  # fmt: skip
    """One forward and backward pass."""
    side, unet = side_px // 8, architecture.unet
    tokens = architecture.text[0].get("max_position_embeddings", 77)
    noisy, target = torch.randn(2, rows, unet["in_channels"], side, side)
    condition = {"text_BLD": torch.randn(rows, tokens, unet["cross_attention_dim"])}
    if denoiser.text_encoder_names:
        condition["ids_EBL"] = torch.zeros(len(architecture.text), rows, tokens, dtype=torch.long)
    if unet.get("addition_embed_type") == "text_time":
        condition |= {"pooled_BP": torch.randn(rows, 1280), "time_ids_B6": torch.randn(rows, 6)}
    times = torch.zeros(rows, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=compute == "half"):
        out = denoiser(noisy, times, **condition)
    (out.float() - target).square().mean().backward()


@contextlib.contextmanager
def norms_in_fp32() -> Iterator[None]:
    """As autocast has it on a GPU: norms read copies in fp32 and give fp32."""
    with contextlib.ExitStack() as stack:
        for name in ("group_norm", "layer_norm"):
            norm = getattr(torch.nn.functional, name)
            stack.enter_context(mock.patch(f"torch.nn.functional.{name}", _in_fp32(norm)))
        yield


def _in_fp32(norm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def cast(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) else value

    def of_copies(*args: Any, **kwargs: Any) -> torch.Tensor:
        return norm(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return of_copies


def row(name: str, *, device: str, method: str, held: str, compute: str, text: bool,
        checkpointing: bool, rows: int) -> dict[str, Any]:  # fmt: skip
    """What is alive at most besides the weights.

    With gradients that are freed at once, kept, and freed after an update of their weight alone.
    """
    architecture, side_px = ARCHITECTURES[name], SIDES_PX[name]
    autocast = compute == "half" and device == "gpu"
    with FakeTensorMode(), norms_in_fp32() if autocast else contextlib.nullcontext():
        denoiser = build(architecture, method=method, held=held, text=text,
                         checkpointing=checkpointing)  # fmt: skip
        with HeldBytes(denoiser.parameters(), update_bytes=UPDATE_BYTES) as found:
            passes(denoiser, architecture, rows=rows, side_px=side_px, compute=compute)
    return {
        "architecture": name,
        "device": device,
        "method": method,
        "weights": held,
        "compute": compute,
        "text": text,
        "checkpointing": checkpointing,
        "side_px": side_px,
        "rows": rows,
        "mib": round(found.peak_without_gradients / _MIB, 1),
        "with_gradients_mib": round(found.peak / _MIB, 1),
        "with_updates_mib": round(found.peak_with_updates / _MIB, 1),
    }


def cases() -> Iterator[dict[str, Any]]:
    """Every kind of training of the small models; SDXL's in half precision, without its text.

    Only autocast makes a difference between devices.
    """
    kinds = [
        ("full", "fp32", "fp32"), ("full", "fp32", "half"), ("full", "half", "half"),
        ("lora", "fp32", "fp32"), ("lora", "half", "half"),
    ]  # fmt: skip
    for name, (method, held, compute) in itertools.product(ARCHITECTURES, kinds):
        devices = ("cpu", "gpu") if compute == "half" else ("any",)
        for text, checkpointing in itertools.product((False, True), (False, True)):
            if name == "sdxl" and (text or compute == "fp32"):
                continue
            for device, rows in itertools.product(devices, (2, 8)):
                yield {"name": name, "device": device, "method": method, "held": held,
                       "compute": compute, "text": text, "checkpointing": checkpointing,
                       "rows": rows}  # fmt: skip


def main() -> None:
    """Trace all cases and write the table."""
    warnings.filterwarnings("ignore")
    rows = [row(**case) for case in cases()]
    made_with = {"torch": torch.__version__, "what": "fake tensors (benchmarks/tracing.py)"}
    lines = ",\n    ".join(json.dumps(found) for found in rows)
    text = f'{{\n  "made_with": {json.dumps(made_with)},\n  "rows": [\n    {lines}\n  ]\n}}\n'
    TABLE.write_text(text)
    print(f"{len(rows)} rows in {TABLE}")


if __name__ == "__main__":
    main()
