"""Stochastic rounding of fp32 numbers to bf16."""

from __future__ import annotations

import torch

_LOW_BITS = 1 << 16
_BF16_BITS = -_LOW_BITS
"""As int32: keeps sign, exponent and the seven mantissa bits that bf16 has."""


def stochastic_round(x: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """`x` (fp32, finite) in bf16, each number to one of its two neighbours, right on average.

    The farther neighbour is taken with the probability of the part that lies beyond the nearer
    one: a uniform 16-bit number is added to the bits that are then cut off. Gupta et al. 2015.
    """
    bits = torch.randint(
        _LOW_BITS, x.shape, dtype=torch.int32, device=x.device, generator=generator
    )
    bits += x.contiguous().view(torch.int32)
    bits &= _BF16_BITS
    return bits.view(torch.float32).to(torch.bfloat16)
