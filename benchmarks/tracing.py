"""Count live bytes of fake tensors in a forward and backward pass, without computing it.

Fake tensors have shapes, types and lifetimes but no data. The count includes the results of each
operation for as long as they live. It excludes kernels' workspaces and the allocator's rounding.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HeldBytes(TorchDispatchMode):
    """Counts the live bytes of all tensors created inside the context, inputs included.

    `peak` is the maximum. `peak_without_gradients` is the maximum if each gradient is freed as soon
    as it is complete. `peak_with_updates` is the maximum if each is freed after the update of its
    parameter, which takes `update_bytes` per element.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], *, update_bytes: int) -> None:
        super().__init__()
        self.peak = self.peak_without_gradients = self.peak_with_updates = 0
        self._update_bytes = update_bytes
        self._held = self._gradients = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        for parameter in parameters:
            self._see(parameter)
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._count_gradient)
        self._held = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count new storages among its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        self.peak = max(self.peak, self._held)
        without = self._held - self._gradients
        self.peak_without_gradients = max(self.peak_without_gradients, without)
        self.peak_with_updates = max(self.peak_with_updates, without)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def release(_: Any) -> None:
            del self._seen[key]
            self._held -= size

        self._seen[key] = weakref.ref(storage, release)
        self._held += size

    def _count_gradient(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        updating = self._held - self._gradients + self._update_bytes * parameter.numel()
        self.peak_with_updates = max(self.peak_with_updates, updating)
        self._gradients += parameter.grad.nbytes
