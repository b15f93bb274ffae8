"""Randomness as an argument: one generator per (seed, role, index)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


SEED_BITS = 63


def derive_seed(seed: int, role: str, *index: int) -> int:
    """A seed of SEED_BITS bits from the run's seed, a role such as "noise", and the item's index.

    sha256 keeps neighbouring indices independent, and the value the same on every platform.
    """
    key = f"{seed}/{role}/" + "/".join(map(str, index))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> (64 - SEED_BITS)


def generator_for(seed: int, role: str, *index: int) -> torch.Generator:
    """A CPU generator for one item, the same whether the item is drawn alone or in a batch."""
    import torch  # seconds, which those who derive seeds need not wait

    return torch.Generator("cpu").manual_seed(derive_seed(seed, role, *index))
