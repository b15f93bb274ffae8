"""Cosines between feature matrices, and bootstrap intervals of their means. NumPy only.

Legend: N images, M reference images, L patches, D feature width, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LOW, _HIGH = 2.5, 97.5  # percentiles of a 95 % interval
_MAX_DRAWS = 4_000_000  # entries of one block of resampling weights: bounds the memory


class Estimate(NamedTuple):
    """A mean and the ends of its bootstrap 95 % percentile interval."""

    mean: float
    low: float
    high: float


def unit_rows(features_ND: NDArray[np.floating]) -> Floats:
    """Rows (the last axis) scaled to length 1, in float64.

    Raises ValueError for a row of zeros or with a number that is not finite.
    """
    rows_ND = np.asarray(features_ND, dtype=np.float64)
    length_N = np.linalg.norm(rows_ND, axis=-1)
    if not np.all(np.isfinite(length_N)) or np.any(length_N == 0.0):
        bad = np.flatnonzero(~np.isfinite(length_N) | (length_N == 0.0)).tolist()
        raise ValueError(f"rows {bad} have no direction: their length is 0 or not finite")
    return rows_ND / length_N[..., None]


def cosines(a_ND: Floats, b_MD: Floats) -> Floats:
    """Cosine of every row of `a` with every row of `b` (both of unit length); shape N x M."""
    # einsum and not @: a BLAS product may order its sums by the number of rows.
    return np.einsum("nd,md->nm", a_ND, b_MD, optimize=False)


def patch_cosines(a_NLD: Floats, b_MLD: Floats) -> Floats:
    """The mean over L places of the cosine of the patches there (of unit length); shape N x M.

    High for pictures of the same layout, whatever they show.
    """
    return np.einsum("nld,mld->nm", a_NLD, b_MLD, optimize=False) / a_NLD.shape[1]


def mean_estimate(values_N: Floats, *, samples: int, seed: int) -> Estimate:
    """The mean of one value per image, resampling images. Raises ValueError when there is none."""
    values_N = np.asarray(values_N, dtype=np.float64)
    count = values_N.shape[0]
    if count == 0:
        raise ValueError("a mean of no values")
    draws_RN = np.random.default_rng(seed).integers(0, count, (samples, count))
    low, high = np.percentile(values_N[draws_RN].mean(axis=1), [_LOW, _HIGH])
    return Estimate(float(values_N.mean()), float(low), float(high))


def pair_mean(values_NN: Floats, groups_N: Sequence[int]) -> float:
    """Mean over pairs of two different images of one group (each pair counts once).

    Raises ValueError when no group holds two images.
    """
    mask_NN = _pairs_mask(groups_N)
    if not mask_NN.any():
        raise ValueError("no group holds two images, so there is no pair")
    return float(np.asarray(values_NN)[mask_NN].mean())


def pair_estimate(
    values_NN: Floats, groups_N: Sequence[int], *, samples: int, seed: int
) -> Estimate:
    """The pair mean with its interval, resampling images within their groups.

    An image drawn c times stands in c pairs with every other drawn image of its group, and never
    in a pair with its own copies: those would be pairs of an image with itself. Resamples without
    any pair are left out.
    """
    mean = pair_mean(values_NN, groups_N)
    values = np.where(_pairs_mask(groups_N), np.asarray(values_NN, dtype=np.float64), 0.0)
    allowed = _pairs_mask(groups_N).astype(np.float64)
    rng = np.random.default_rng(seed)
    means: list[Floats] = []
    left, block = samples, max(1, _MAX_DRAWS // max(1, len(groups_N)))
    while left > 0:
        counts_RN = _resampling_counts(rng, groups_N, samples=min(left, block))
        weight_R = np.einsum("rn,nm,rm->r", counts_RN, allowed, counts_RN, optimize=True)
        total_R = np.einsum("rn,nm,rm->r", counts_RN, values, counts_RN, optimize=True)
        means.append(total_R[weight_R > 0] / weight_R[weight_R > 0])
        left -= block
    low, high = np.percentile(np.concatenate(means), [_LOW, _HIGH])
    return Estimate(mean, float(low), float(high))


def _pairs_mask(groups_N: Sequence[int]) -> NDArray[np.bool_]:
    groups = np.asarray(groups_N)
    return (groups[:, None] == groups[None, :]) & ~np.eye(len(groups), dtype=bool)


def _resampling_counts(
    rng: np.random.Generator, groups_N: Sequence[int], *, samples: int
) -> Floats:
    """How often each image is drawn in each resample, with replacement within its group; R x N."""
    groups = np.asarray(groups_N)
    counts_RN = np.zeros((samples, len(groups)))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        chances = np.full(len(members), 1.0 / len(members))
        counts_RN[:, members] = rng.multinomial(len(members), chances, size=samples)
    return counts_RN
