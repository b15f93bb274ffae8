"""Peak memory of a training step, part by part. Torch-free.

Weights, gradients and the optimizer's state follow from shapes and settings, to the byte. What the
forward and backward pass hold comes from a table of traced passes (activations.json). It grows
with rows and pixels on a line that does not begin at zero: autocast keeps copies of fp32 weights.
DDP adds a copy of the gradients; FSDP2 divides what is held by its processes.
benchmarks/memory.py holds the sum against measured runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dreambooth_core.config import DataSettings, TrainSettings
from dreambooth_core.models.footprint import optimizer_bytes, weight_bytes
from dreambooth_core.planning.launches import Launch
from dreambooth_core.planning.shapes import ModelShapes
from dreambooth_core.planning.tables import line_through, read_table

Kind = Literal["cpu", "gpu"]
"""Kinds of devices: autocast computes norms in fp32 on a GPU only."""
MIB = 2**20
CONTEXT_MIB = 700
"""What a card needs besides: driver context, kernels' workspaces. Allowed for, not measured."""
UPDATE_BYTES = 16
"""Four fp32 copies of a tensor, while it is updated on its own."""
_UPDATE_BYTES_8BIT_CPU = 28
"""Without a GPU's kernel bitsandbytes widens both moments to fp32 to update them."""
_ALONE = Launch()
_COMPUTE_BYTES = {"no": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Footprint:
    """MiB of a training step, by part.

    `passes` is what forward and backward pass hold at most, with the gradients where these are
    kept and with the updates where these are part of them; None for a kind of training that was
    not traced. `update` is what an update of one weight after the other needs, `exchange` what DDP
    passes on the gradients in. `is_whole` is False where something is known to be missing.
    """

    weights: float
    frozen: float
    gradients: float
    optimizer: float
    average: float
    update: float
    exchange: float
    passes: float | None
    is_whole: bool

    @property
    def peak(self) -> float:
        """MiB at the peak, in the backward pass or in the update; a lower bound unless whole."""
        held = self.weights + self.frozen + self.optimizer + self.average + self.exchange
        return held + max(self.passes or 0.0, self.gradients + self.update)


def predict(
    model: ModelShapes,
    train: TrainSettings,
    data: DataSettings,
    *,
    with_prior: bool,
    kind: Kind,
    launch: Launch = _ALONE,
) -> Footprint:
    """What a step of these settings needs on each device; not for DeepSpeed, whose is not known."""
    is_split = launch.kind == "FSDP2"
    share = 1 / launch.num_processes if is_split else 1
    trained = model.trained(train)
    numbers = sum(map(math.prod, trained))
    weights = weight_bytes(trained, train) * share
    frozen = sum(map(math.prod, model.frozen(train))) * _COMPUTE_BYTES[train.mixed_precision]
    largest, update_bytes = max(map(math.prod, trained)), _update_bytes(train, kind)
    rows = train.train_batch_size * (2 if with_prior else 1)
    alike = _traced(train, kind, is_split=is_split)
    traced = [row for row in alike if row["architecture"] == model.architecture]
    keys = ("mib",) if is_split else ("mib", _besides(train))
    passes = _passes(traced, keys, rows=rows, side_px=data.resolution)
    freed = _passes(traced, ("mib",), rows=rows, side_px=data.resolution)
    if freed is not None and train.gradient_accumulation_steps > 1:
        passes = freed + weights / MIB  # from the second micro-step on all gradients are there
    if passes is not None and train.fused_backward:
        passes += (update_bytes - UPDATE_BYTES) * largest / MIB  # more than the trace's updates
    return Footprint(
        weights=weights / MIB,
        frozen=frozen * share / MIB,
        gradients=0.0 if train.fused_backward else weights / MIB,
        optimizer=optimizer_bytes(trained, train) * share / MIB,
        average=4 * numbers / MIB if train.ema_decay else 0.0,
        update=update_bytes * largest / MIB,
        exchange=weights / MIB if launch.kind == "DDP" else 0.0,
        passes=passes,
        is_whole=passes is not None and not is_split,  # FSDP2 puts blocks together for a moment
    )


def _update_bytes(train: TrainSettings, kind: Kind) -> int:
    """Bytes a number of what an update of one weight after the other holds besides."""
    if train.uses_fused_adamw:
        return 0
    return _UPDATE_BYTES_8BIT_CPU if train.use_8bit_adam and kind == "cpu" else UPDATE_BYTES


def _passes(
    traced: list[dict[str, Any]], keys: Sequence[str], *, rows: int, side_px: int
) -> float | None:
    """MiB of forward and backward pass, on the lines through the traced ones of its kind."""
    if not traced:
        return None
    size = rows * (side_px / traced[0]["side_px"]) ** 2
    # Gradients and updates count where much of the rest is gone, so the sum bends: no less than
    # without them.
    return max(_on_line(traced, key, size) for key in keys)


def _besides(train: TrainSettings) -> str:
    """What is traced together with the passes: gradients that are kept, or updates."""
    return "with_updates_mib" if train.fused_backward else "with_gradients_mib"


def _traced(train: TrainSettings, kind: Kind, *, is_split: bool) -> list[dict[str, Any]]:
    """The rows of the table that are alike, of all architectures.

    FSDP2 has no autocast: it casts the weights of a block itself, and the norms compute in what
    they get, as on a CPU.
    """
    if train.compile_blocks:
        return []  # compiled blocks keep other tensors, and give back all gradients at once
    lora = train.lora if train.method == "lora" else None
    compute = "fp32" if train.mixed_precision == "no" else "half"
    held = compute if lora or is_split else ("fp32" if train.weight_dtype == "fp32" else "half")
    wanted = {
        "method": train.method,
        "compute": compute,
        "weights": held,
        "text": train.train_text_encoder,
        "checkpointing": train.gradient_checkpointing,
        "dora": lora is not None and lora.use_dora,
        "dropout": lora is not None and lora.lora_dropout > 0,
    }
    devices = ("cpu" if is_split else kind, "any")
    rows = read_table("activations.json")["rows"]
    return [r for r in rows if r["device"] in devices and wanted.items() <= r.items()]


def _on_line(traced: list[dict[str, Any]], key: str, size: float) -> float:
    """The value at `size` rows, on the line through the traced ones."""
    return line_through([(row["rows"], row[key]) for row in traced], size)
