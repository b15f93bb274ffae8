"""Dropout whose masks are functions of (seed, row, layer): the same for any split of a batch.

torch's own dropout draws one mask for a whole micro-step from the process's generator: two
micro-steps, or two processes, would drop other numbers than one batch of their rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dreambooth_core.numerics.seeding import derive_seed

# B rows, in front in the input of every layer


@dataclass
class Rows:
    """The rows that go through the networks now, each by (is a class row, sample position)."""

    keys: Sequence[tuple[bool, int]] = ()


class RowDropout(nn.Dropout):
    """Dropout with a mask for each row. Recomputed in a backward pass it drops the same again."""

    def __init__(self, p: float, *, layer: str, seed: int, rows: Rows) -> None:
        super().__init__(p)
        self._layer, self._seed, self._rows = layer, seed, rows

    # Compiled code has generators of its own, which no key reaches; `disable` loses the type.
    @torch.compiler.disable
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input: torch.Tensor
    ) -> torch.Tensor:
        """The input where it is not trained; else with a part `p` of each row set to zero."""
        if not self.training:
            return input
        return input.masked_fill(self._draw(input), 0) / (1 - self.p)

    def _draw(self, like: torch.Tensor) -> torch.Tensor:
        """What is dropped; row by row, as in a batch of any other size."""
        dropped = torch.empty(like.shape, dtype=torch.bool, device=like.device)
        generator = torch.Generator(like.device)
        for row, (is_class, position) in zip(dropped, self._rows.keys, strict=True):
            key = derive_seed(self._seed, f"dropout/{self._layer}", int(is_class), position)
            row.bernoulli_(self.p, generator=generator.manual_seed(key))
        return dropped


def key_by_rows(model: nn.Module, *, seed: int) -> Rows:
    """Put a RowDropout in the place of each dropout that drops; returns what they read."""
    rows = Rows()
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout and child.p > 0:
                keyed = RowDropout(child.p, layer=f"{path}.{name}", seed=seed, rows=rows)
                module.register_module(name, keyed.train(child.training))
    return rows


def uses_dropout(model: nn.Module) -> bool:
    """Whether any layer draws random numbers while it trains: a dropout, or an attention's own."""
    dropouts = (part for part in model.modules() if isinstance(part, nn.Dropout))
    return any(part.p > 0 for part in dropouts) or has_unkeyed_dropout(model)


def has_unkeyed_dropout(model: nn.Module) -> bool:
    """Whether a layer drops by itself, as CLIP's attention can: by torch's own generator."""
    return any(_own_dropout(part) > 0 for part in model.modules())


def _own_dropout(part: nn.Module) -> float:
    rate = vars(part).get("dropout", 0.0)  # getattr finds a model's config too, with a warning
    return rate if isinstance(rate, float) else 0.0


@contextlib.contextmanager
def keyed_dropout(*, seed: int, index: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Borrow torch's own generators, seeded by (seed, index), for what can be given no other."""
    key = derive_seed(seed, "dropout", *index)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(key)
        if devices:
            torch.cuda.manual_seed(key)
        yield
