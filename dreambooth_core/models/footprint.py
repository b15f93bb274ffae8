"""The bytes that a training stores, from its settings and tensor shapes. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from dreambooth_core.config import TrainSettings

Shape = Sequence[int]

_BYTES = {"fp32": 4, "bf16": 2}
_SMALLEST_8_BIT = 4096
"""bitsandbytes keeps the moments of smaller tensors in fp32."""
_BLOCK = 256
"""The number of values that share an fp32 scale in its 8-bit moments."""
_TABLES = 2 * 256 * 4
"""Its two tables of 256 values, saved for every tensor."""


def weight_bytes(shapes: Iterable[Shape], train: TrainSettings) -> int:
    """The bytes of the trained weights."""
    return sum(math.prod(shape) for shape in shapes) * _BYTES[train.weight_dtype]


def optimizer_bytes(shapes: Iterable[Shape], train: TrainSettings) -> int:
    """The bytes of the optimizer's state after its first update."""
    return sum(_moments(shape, train) for shape in shapes)


def _moments(shape: Shape, train: TrainSettings) -> int:
    size = math.prod(shape)
    if train.optimizer == "adafactor":
        rows = shape[0] if len(shape) > 1 else 0
        return 4 * (rows + size // rows if rows else size)
    if train.use_8bit_adam and size >= _SMALLEST_8_BIT:
        return 2 * size + 2 * 4 * math.ceil(size / _BLOCK) + _TABLES
    return 8 * size


def state_bytes(shapes: Sequence[Shape], train: TrainSettings) -> int:
    """The bytes of a resume state on disk: weights, optimizer state and, if enabled, the EMA."""
    average = 4 * sum(math.prod(shape) for shape in shapes) if train.ema_decay else 0
    return weight_bytes(shapes, train) + optimizer_bytes(shapes, train) + average
