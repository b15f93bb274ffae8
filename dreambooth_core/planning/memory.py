"""Peak memory of a training step, part by part. Torch-free.

Weights, gradients and optimizer state follow exactly from shapes and settings. The memory of the
forward and backward pass comes from a table of traced passes (activations.json). It grows linearly
with rows and pixels, but not from zero: autocast keeps copies of fp32 weights. DDP adds a copy of
the gradients; FSDP2 divides the training state by the number of processes. benchmarks/memory.py
compares the predictions with measured runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dreambooth_core import config
from dreambooth_core.config import DataSettings, Strategy, TrainSettings
from dreambooth_core.config.launching import offloads
from dreambooth_core.models.footprint import optimizer_bytes, weight_bytes
from dreambooth_core.planning.shapes import ModelShapes
from dreambooth_core.planning.tables import line_through, read_table
from dreambooth_core.workspace import Workspace

Kind = Literal["cpu", "gpu"]
"""The kind of device. Autocast computes norms in fp32 only on a GPU."""
MIB = 2**20
CONTEXT_MIB = 700
"""Allowance for the driver context and kernel workspaces of a GPU; not measured."""
UPDATE_BYTES = 16
"""Bytes per parameter of a single tensor's update: four fp32 copies."""
_UPDATE_BYTES_8BIT_CPU = 28
"""On a CPU, bitsandbytes also converts both moments to fp32 for the update."""
_COMPUTE_BYTES = {"no": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Launch:
    """The strategy that shards or copies the training state, and its number of processes."""

    strategy: Strategy = "single"
    num_processes: int = 1
    offloads: bool = False
    """Whether the optimizer's state is on the CPU."""


_ALONE = Launch()


def launch_of(train: TrainSettings, root: Path) -> Launch:
    """The launch that the settings and their launch file describe.

    Raises SettingsError if the file is missing or contradicts the settings.
    """
    file = config.read_launch_config(Workspace(root), train)
    strategy = config.strategy_of(train, file)
    is_offloaded = file is not None and offloads(file.deepspeed or {})
    return Launch(strategy, train.num_processes, is_offloaded)


@dataclass(frozen=True)
class Footprint:
    """MiB of a training step, by part.

    `passes` is the peak of the forward and backward pass, including gradients that are kept and
    fused updates; None if this kind of training was not traced. `update` is the peak of an update
    of one weight at a time, `exchange` DDP's buffer for gradients. If `is_complete` is False, some
    part is missing and the peak is a lower bound.
    """

    weights: float
    frozen: float
    gradients: float
    optimizer: float
    average: float
    update: float
    exchange: float
    passes: float | None
    is_complete: bool

    @property
    def peak(self) -> float:
        """MiB at the peak, in the backward pass or in the update."""
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
    """Predict the memory of a step on each device. Does not support DeepSpeed."""
    is_split = launch.strategy == "fsdp"
    share = 1 / launch.num_processes if is_split else 1
    trained = model.trained(train)
    numbers = sum(map(math.prod, trained))
    weights = weight_bytes(trained, train) * share
    frozen = sum(map(math.prod, model.frozen(train))) * _COMPUTE_BYTES[train.mixed_precision]
    largest, update_bytes = max(map(math.prod, trained)), _update_bytes(train, kind)
    rows = train.train_batch_size * (2 if with_prior else 1)
    candidates = _traced(train, kind, is_split=is_split)
    traced = [row for row in candidates if row["architecture"] == model.architecture]
    keys = ("mib",) if is_split else ("mib", _larger_peak(train))
    passes = _passes(traced, keys, rows=rows, side_px=data.resolution)
    freed = _passes(traced, ("mib",), rows=rows, side_px=data.resolution)
    if freed is not None and train.gradient_accumulation_steps > 1:
        passes = freed + weights / MIB  # all gradients, from the second micro-step on
    if passes is not None and train.fused_backward:
        passes += (update_bytes - UPDATE_BYTES) * largest / MIB  # beyond the traced updates
    return Footprint(
        weights=weights / MIB,
        frozen=frozen * share / MIB,
        gradients=0.0 if train.fused_backward else weights / MIB,
        optimizer=optimizer_bytes(trained, train) * share / MIB,
        average=4 * numbers / MIB if train.ema_decay else 0.0,
        update=update_bytes * largest / MIB,
        exchange=weights / MIB if launch.strategy == "ddp" else 0.0,
        passes=passes,
        is_complete=passes is not None and not is_split,  # FSDP2 briefly gathers whole blocks
    )


def _update_bytes(train: TrainSettings, kind: Kind) -> int:
    """Extra bytes per parameter of an update of one weight at a time."""
    if train.uses_fused_adamw:
        return 0
    return _UPDATE_BYTES_8BIT_CPU if train.use_8bit_adam and kind == "cpu" else UPDATE_BYTES


def _passes(
    traced: list[dict[str, Any]], keys: Sequence[str], *, rows: int, side_px: int
) -> float | None:
    """MiB of the forward and backward pass, interpolated between traced passes."""
    if not traced:
        return None
    size = rows * (side_px / traced[0]["side_px"]) ** 2
    # Gradients and updates peak after most activations are freed, so the line can pass below the
    # peak without them.
    return max(_on_line(traced, key, size) for key in keys)


def _larger_peak(train: TrainSettings) -> str:
    """The column of the table that includes kept gradients or fused updates."""
    return "with_updates_mib" if train.fused_backward else "with_gradients_mib"


def _traced(train: TrainSettings, kind: Kind, *, is_split: bool) -> list[dict[str, Any]]:
    """The rows of the table for this kind of training, of all architectures.

    FSDP2 casts the weights of a block itself instead of using autocast, so norms compute in the
    block's type, as on a CPU.
    """
    if train.compile_blocks:
        return []  # compiled blocks keep other tensors and free all gradients at once
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
    """The value for `size` rows, on the line through the traced rows."""
    return line_through([(row["rows"], row[key]) for row in traced], size)
