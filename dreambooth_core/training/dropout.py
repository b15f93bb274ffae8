"""Dropout whose masks depend only on (seed, row, layer): equal for any split of a batch.

torch's dropout draws one mask per micro-step from the process's generator. Two micro-steps or two
processes would therefore drop other elements than one batch of the same rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dreambooth_core.numerics.seeding import derive_seed


@dataclass
class Rows:
    """The keys of the current micro-step's rows: (is class row, sample position)."""

    keys: Sequence[tuple[bool, int]] = ()


class RowDropout(nn.Dropout):
    """Dropout with one mask per row; a recomputation in the backward pass draws the same masks."""

    def __init__(self, p: float, *, layer: str, seed: int, rows: Rows) -> None:
        super().__init__(p)
        self._layer, self._seed, self._rows = layer, seed, rows

    # Compiled code uses its own generators, which cannot be seeded; `disable` loses the type.
    @torch.compiler.disable
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input: torch.Tensor
    ) -> torch.Tensor:
        """Zero a fraction `p` of each row of [B, ...]; return the input in evaluation mode."""
        if not self.training:
            return input
        return input.masked_fill(self._draw(input), 0) / (1 - self.p)

    def _draw(self, like: torch.Tensor) -> torch.Tensor:
        """Draw the bool mask of dropped elements row by row, independent of the batch size."""
        dropped = torch.empty(like.shape, dtype=torch.bool, device=like.device)
        generator = torch.Generator(like.device)
        for row, (is_class, position) in zip(dropped, self._rows.keys, strict=True):
            key = derive_seed(self._seed, f"dropout/{self._layer}", int(is_class), position)
            row.bernoulli_(self.p, generator=generator.manual_seed(key))
        return dropped


def key_by_rows(model: nn.Module, *, seed: int) -> Rows:
    """Replace each dropout with p > 0 by a RowDropout; return the keys that they read."""
    rows = Rows()
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout and child.p > 0:
                keyed = RowDropout(child.p, layer=f"{path}.{name}", seed=seed, rows=rows)
                module.register_module(name, keyed.train(child.training))
    return rows


def uses_dropout(model: nn.Module) -> bool:
    """Return whether any layer drops elements in training, including attention dropout."""
    dropouts = (part for part in model.modules() if isinstance(part, nn.Dropout))
    return any(part.p > 0 for part in dropouts) or has_unkeyed_dropout(model)


def has_unkeyed_dropout(model: nn.Module) -> bool:
    """Return whether a layer, such as CLIP's attention, drops with torch's global generator."""
    return any(_attention_dropout(part) > 0 for part in model.modules())


def _attention_dropout(part: nn.Module) -> float:
    rate = vars(part).get("dropout", 0.0)  # getattr would fall back to the config and warn
    return rate if isinstance(rate, float) else 0.0


@contextlib.contextmanager
def keyed_dropout(*, seed: int, index: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Seed torch's global generators with (seed, index) inside, and restore them afterwards.

    For layers that accept no other generator.
    """
    key = derive_seed(seed, "dropout", *index)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(key)
        if devices:
            torch.cuda.manual_seed(key)
        yield
