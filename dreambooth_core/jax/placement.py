"""The placement of arrays: rows split over the devices, everything else replicated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_ROWS = "rows"


class Placement:
    """Data parallelism over `devices`; the compiler adds the communication."""

    def __init__(self, devices: Sequence[Any]) -> None:
        self.num_devices = len(devices)
        self._mesh = Mesh(np.array(devices), (_ROWS,))

    def on_all(self, tree: Any) -> Any:
        """Replicate the arrays of `tree` on every device."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def by_rows(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Split each tensor of a micro-step along its axis of rows.

        The B in the shape suffix of a name marks that axis, as in `weights_RB`.
        """
        return {
            name: self.by_rows(value)
            if isinstance(value, dict)
            else jax.device_put(value, self._split(name))
            for name, value in tensors.items()
        }

    def _split(self, name: str) -> NamedSharding:
        axis = name.rpartition("_")[2].index("B")
        return NamedSharding(self._mesh, PartitionSpec(*[None] * axis, _ROWS))
