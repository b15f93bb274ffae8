"""Trace the memory of forward and backward passes, and write the table of `dreambooth plan`.

    python -m benchmarks.trace_memory               # all rows: minutes
    python -m benchmarks.trace_memory --missing     # only rows that the table lacks

Fake tensors (tracing.py) stand for the real architectures at full size, without weights or a GPU.
Rows of the device "gpu" compute norms in fp32, as autocast does there, and keep one byte per
element for dropout; rows of the device "cpu" keep the input's type for both. The table excludes
kernel workspaces, fragmentation and the CUDA context. benchmarks/memory.py compares it with real
runs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
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
_DROPOUT = 0.1
"""Any rate: memory does not depend on it."""
_MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A kind of training: the key of a row in the table."""

    architecture: str
    device: str
    method: str
    weights: str
    compute: str
    text: bool
    checkpointing: bool
    rows: int
    dora: bool = False
    dropout: bool = False

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Case:
        """The case of a row."""
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})


def build(case: Case) -> Denoiser:
    """The networks of a case, in training mode."""
    architecture = ARCHITECTURES[case.architecture]
    adapter = _LORA.model_copy(
        update={"use_dora": case.dora, "lora_dropout": _DROPOUT if case.dropout else 0.0}
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(_DTYPES[case.weights])
    try:
        trained_text = architecture.build_text() if case.text else {}
        denoiser = Denoiser(architecture.build_unet(), trained_text)
    finally:
        torch.set_default_dtype(before)
    for part, module in denoiser.parts.items():
        if case.method == "lora":
            with mock.patch.object(torch.nn.Module, "to", lambda module, *_, **__: module):
                add_adapter(module, adapter, part=part, seed=0)  # fake tensors cannot be moved
        if case.checkpointing:
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
    """Compute norms in fp32 from fp32 copies, as autocast does on a GPU."""
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


@contextlib.contextmanager
def dropout_of_a_gpu() -> Iterator[None]:
    """Keep a boolean mask for dropout, as the GPU kernel does, not one of the input's type."""

    def kept_small(layer: torch.nn.Dropout, value: torch.Tensor) -> torch.Tensor:
        return torch.native_dropout(value, layer.p, layer.training)[0] if layer.p else value

    with mock.patch.object(torch.nn.Dropout, "forward", kept_small):
        yield


@contextlib.contextmanager
def as_on(device: str, *, compute: str) -> Iterator[None]:
    """Emulate the device's differences from a CPU."""
    with contextlib.ExitStack() as stack:
        if device == "gpu":
            stack.enter_context(dropout_of_a_gpu())
        if device == "gpu" and compute == "half":
            stack.enter_context(norms_in_fp32())
        yield


def row(case: Case) -> dict[str, Any]:
    """A row: peak memory besides the weights.

    Without gradients, with all gradients, and with each gradient freed after its weight's update.
    """
    architecture, side_px = ARCHITECTURES[case.architecture], SIDES_PX[case.architecture]
    with FakeTensorMode(), as_on(case.device, compute=case.compute):
        denoiser = build(case)
        with HeldBytes(denoiser.parameters(), update_bytes=UPDATE_BYTES) as found:
            passes(denoiser, architecture, rows=case.rows, side_px=side_px, compute=case.compute)
    return {
        **asdict(case),
        "side_px": side_px,
        "mib": round(found.peak_without_gradients / _MIB, 1),
        "with_gradients_mib": round(found.peak / _MIB, 1),
        "with_updates_mib": round(found.peak_with_updates / _MIB, 1),
    }


_ADAPTERS = tuple(itertools.product((False, True), repeat=2))
"""Without and with DoRA and dropout."""
_KINDS = (
    ("full", "fp32", "fp32"), ("full", "fp32", "half"), ("full", "half", "half"),
    ("lora", "fp32", "fp32"), ("lora", "half", "half"),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All kinds of training; for SDXL, half precision without text encoders only."""
    for name, (method, held, compute) in itertools.product(ARCHITECTURES, _KINDS):
        adapters = _ADAPTERS if method == "lora" else ((False, False),)
        switches = itertools.product(adapters, (False, True), (False, True))
        for (dora, dropout), text, checkpointing in switches:
            if name == "sdxl" and (text or compute == "fp32"):
                continue
            # Only autocast and dropout make a difference between devices.
            devices = ("cpu", "gpu") if compute == "half" or dropout else ("any",)
            for device, rows in itertools.product(devices, (2, 8)):
                yield Case(
                    architecture=name, device=device, method=method, weights=held,
                    compute=compute, text=text, checkpointing=checkpointing, rows=rows,
                    dora=dora, dropout=dropout,
                )  # fmt: skip


def _known(made_with: Mapping[str, str]) -> dict[Case, dict[str, Any]]:
    """The rows of the existing table, if it comes from the same version of torch."""
    table = json.loads(TABLE.read_bytes())
    if table["made_with"] != made_with:
        return {}
    return {Case.of_row(found): {**asdict(Case.of_row(found)), **found} for found in table["rows"]}


def main() -> None:
    """Trace the cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--missing", action="store_true", help="keep existing rows")
    warnings.filterwarnings("ignore")
    made_with = {"torch": torch.__version__, "what": "fake tensors (benchmarks/tracing.py)"}
    known = _known(made_with) if parser.parse_args().missing else {}
    found: dict[Case, dict[str, Any]] = {}
    for case in cases():
        found[case] = known.get(case) or row(case)
        if case not in known:
            _write([*found.values(), *(r for c, r in known.items() if c not in found)], made_with)
    _write(list(found.values()), made_with)
    print(f"{len(found)} rows in {TABLE}")


def _write(rows: Sequence[Mapping[str, Any]], made_with: Mapping[str, str]) -> None:
    """Write all rows so far; --missing resumes a stopped trace."""
    lines = ",\n    ".join(map(json.dumps, rows))
    text = f'{{\n  "made_with": {json.dumps(made_with)},\n  "rows": [\n    {lines}\n  ]\n}}\n'
    TABLE.write_text(text)


if __name__ == "__main__":
    main()
