"""Stochastic rounding of fp32 numbers to bf16."""

from __future__ import annotations

import torch

_LOW_BITS = 1 << 16
_BF16_BITS = -_LOW_BITS
"""As int32: keeps sign, exponent and the seven mantissa bits that bf16 has."""
_LEAST_EXPONENT = -118
"""Of the distances between neighbours that are told apart: 2^126 times one is a number of fp32."""


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


def expected_moves(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """How many numbers of `before` (bf16) differ after stochastic rounding of `after` (fp32).

    A change of at least the distance to the next bf16 number moves for certain, a smaller one with
    the probability of its part of that distance. From zero every change does: the next number is
    2^-133 away.
    """
    start = before.to(torch.float32, copy=True)
    exponent = torch.frexp(start).exponent  # of zero it is 0, as if that were a number near 1
    exponent.masked_fill_(start == 0, _LEAST_EXPONENT).clamp_(min=_LEAST_EXPONENT)
    moves = start.sub_(after).abs_()
    return torch.ldexp(moves, exponent.neg_().add_(8)).clamp_(max=1).sum()
