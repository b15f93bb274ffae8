"""Peak memory of a training step, part by part. Torch-free.

Weights, gradients and the optimizer's state follow from shapes and settings, to the byte. What the
forward and backward pass need besides comes from a table of traced steps (activations.json): it
grows with rows and pixels on a straight line. Steps of whole networks were traced: for adapters,
which keep less, they are an upper bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dreambooth_core.config import DataSettings, TrainSettings
from dreambooth_core.config.pairs import updates_in_one_kernel
from dreambooth_core.models.footprint import optimizer_bytes, weight_bytes
from dreambooth_core.planning.shapes import ModelShapes, read_table

MIB = 2**20
CONTEXT_MIB = 700
"""What a card needs besides: driver context, kernels' workspaces. Allowed for, not measured."""
_UPDATE_BYTES = 16
"""Four fp32 copies of the largest tensor, while it is updated on its own."""
_COMPUTE_BYTES = {"no": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Footprint:
    """MiB of a training step, by part; `activations` is None for an architecture not traced."""

    weights: float
    frozen: float
    gradients: float
    optimizer: float
    update: float
    activations: float | None

    @property
    def peak(self) -> float:
        """MiB at the peak; a lower bound without activations.

        Gradients come as activations go, so it is the larger of the two that counts.
        """
        passing = max(self.activations or 0.0, self.gradients)
        return self.weights + self.frozen + self.optimizer + passing + self.update


def predict(
    model: ModelShapes, train: TrainSettings, data: DataSettings, *, with_prior: bool
) -> Footprint:
    """What a step of these settings needs on each device."""
    lora = train.lora if train.method == "lora" else None
    shapes = [s for _, s in model.unet] if lora is None else model.adapters(lora)
    text = model.text_parameters if train.train_text_encoder else 0
    if lora is None and text:
        shapes = [*shapes, (text,)]
    weights = weight_bytes(shapes, train)
    largest = max(math.prod(shape) for _, shape in model.unet) if lora is None else 0
    frozen = 0 if lora is None else model.num_parameters * _COMPUTE_BYTES[train.mixed_precision]
    rows = train.train_batch_size * (2 if with_prior else 1)
    return Footprint(
        weights=weights / MIB,
        frozen=frozen / MIB,
        gradients=0.0 if train.fused_backward else weights / MIB,
        optimizer=optimizer_bytes(shapes, train) / MIB,
        update=0.0 if updates_in_one_kernel(train) else _UPDATE_BYTES * largest / MIB,
        activations=_activations(model.architecture, train, rows=rows, side_px=data.resolution),
    )


def _activations(
    architecture: str | None, train: TrainSettings, *, rows: int, side_px: int
) -> float | None:
    """MiB of forward and backward pass, from the traced step that is nearest in its settings."""
    table = [r for r in read_table("activations.json")["rows"] if r["architecture"] == architecture]
    table = [r for r in table if r["checkpointing"] == train.gradient_checkpointing] or table
    if not table:
        return None
    best = max(_likeness(row, train) for row in table)
    alike = sorted((r["rows"], r["mib"]) for r in table if _likeness(r, train) == best)
    (first, low), (last, high) = alike[0], alike[-1]
    slope = (high - low) / (last - first) if last > first else low / first
    pixels = (side_px / table[0]["side_px"]) ** 2
    return low - slope * first + slope * rows * pixels


def _likeness(row: dict[str, Any], train: TrainSettings) -> tuple[bool, bool]:
    """How well a traced step fits. Adapters are like weights that are held in the computed type."""
    compute = "no" if train.mixed_precision == "no" else "bf16"
    held = "bf16" if train.method == "lora" and compute == "bf16" else train.weight_dtype
    return row["compute"] == compute, row["weights"] == held
