"""Cosines and bootstrap intervals against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dreambooth_core.numerics import similarity
from dreambooth_core.numerics.similarity import (
    cosines,
    mean_estimate,
    pair_estimate,
    pair_mean,
    unit_rows,
)


def test_unit_rows_scales_a_3_4_5_triangle() -> None:
    np.testing.assert_allclose(unit_rows(np.array([[3.0, 4.0]])), [[0.6, 0.8]])


def test_features_in_single_precision_are_summed_in_double() -> None:
    features = np.random.default_rng(2).normal(size=(3, 50)).astype(np.float32)
    rows = unit_rows(features)
    assert np.array_equal(rows, unit_rows(features.astype(np.float64)))
    values = rows.astype(np.float32)[0]
    expected = mean_estimate(values.astype(np.float64), samples=50, seed=1)
    assert mean_estimate(values, samples=50, seed=1) == expected


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_feature_without_direction_is_refused_with_its_row(bad: float) -> None:
    with pytest.raises(ValueError, match=r"rows \[1\] have no direction"):
        unit_rows(np.array([[1.0, 0.0], [bad, bad]]))


def test_cosines_of_axes_and_their_bisector() -> None:
    a = unit_rows(np.array([[1.0, 0.0], [1.0, 1.0]]))
    b = unit_rows(np.array([[0.0, 2.0], [5.0, 0.0], [-1.0, -1.0]]))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(cosines(a, b), [[0, 1, -half], [half, half, -1]], atol=1e-15)


def test_a_cosine_does_not_depend_on_the_other_rows() -> None:
    rows = unit_rows(np.random.default_rng(0).normal(size=(40, 384)))
    assert np.array_equal(cosines(rows, rows)[7, 3:9], cosines(rows[7:8], rows[3:9])[0])


def test_pair_mean_ignores_self_pairs_and_other_groups() -> None:
    """Group 0 has the pair (0, 1), group 1 the pairs (2, 3), (2, 4), (3, 4): mean of 4 values."""
    values = np.full((5, 5), 100.0)
    for (i, j), value in {(0, 1): 2.0, (2, 3): 4.0, (2, 4): 6.0, (3, 4): 8.0}.items():
        values[i, j] = values[j, i] = value
    assert pair_mean(values, [0, 0, 1, 1, 1]) == pytest.approx((2 + 4 + 6 + 8) / 4)


def test_pair_mean_without_any_pair_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no group holds two images, so there is no pair$"):
        pair_mean(np.eye(3), [0, 1, 2])


def test_mean_of_no_value_is_refused_and_of_one_is_the_value() -> None:
    with pytest.raises(ValueError, match=r"^a mean of no values$"):
        mean_estimate(np.array([]), samples=10, seed=1)
    assert mean_estimate(np.array([0.3]), samples=10, seed=1) == (0.3, 0.3, 0.3)


def test_every_value_is_drawn() -> None:
    estimate = mean_estimate(np.array([1.0, 2.0]), samples=200, seed=1)
    assert (estimate.low, estimate.high) == (1.0, 2.0)


def test_interval_of_many_values_matches_the_normal_one() -> None:
    """Of 400 values with s = 1: 1.96 / 20 = 0.098 on either side."""
    values = np.random.default_rng(1).normal(size=400)
    values = (values - values.mean()) / values.std()
    estimate = mean_estimate(values, samples=4000, seed=3)
    assert estimate.mean == pytest.approx(0.0, abs=1e-12)
    assert estimate.low == pytest.approx(-0.098, abs=0.008)
    assert estimate.high == pytest.approx(0.098, abs=0.008)


def test_interval_covers_the_true_mean_95_percent_of_draws() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(300):
        estimate = mean_estimate(rng.normal(size=32), samples=400, seed=trial)
        hits += estimate.low <= 0.0 <= estimate.high
    assert 0.89 <= hits / 300 <= 0.98  # percentile intervals of 32 values are slightly too short


def test_interval_depends_on_the_seed() -> None:
    values = np.arange(8.0)
    first = mean_estimate(values, samples=500, seed=1)
    assert first == mean_estimate(values, samples=500, seed=1)
    assert first != mean_estimate(values, samples=500, seed=2)


def test_equal_pair_values_give_an_interval_of_no_width() -> None:
    """Were an image paired with its own copies (here -1 on the diagonal), low would be below."""
    values = np.full((4, 4), 0.25)
    np.fill_diagonal(values, -1.0)
    estimate = pair_estimate(values, [0, 0, 0, 0], samples=200, seed=0)
    assert estimate == pytest.approx((0.25, 0.25, 0.25))


def test_pair_interval_of_two_images_is_their_one_pair() -> None:
    values = np.array([[1.0, 0.3], [0.3, 1.0]])
    assert pair_estimate(values, [0, 0], samples=50, seed=0) == pytest.approx((0.3, 0.3, 0.3))


@pytest.mark.parametrize("rows_at_once", [0, 1, 3, 7])
def test_pair_interval_does_not_depend_on_the_blocks(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven resamples of one group, all at once or in blocks of at least one."""
    rows = unit_rows(np.random.default_rng(5).normal(size=(6, 6)))
    values = cosines(rows, rows)
    expected = pair_estimate(values, [0] * 6, samples=7, seed=3)
    monkeypatch.setattr(similarity, "_MAX_DRAWS", rows_at_once * 6 + 1)
    assert pair_estimate(values, [0] * 6, samples=7, seed=3) == pytest.approx(expected)
    assert pair_estimate(values, [0] * 6, samples=7, seed=4) != pytest.approx(expected)


def test_pair_interval_covers_its_own_mean() -> None:
    features = unit_rows(np.random.default_rng(5).normal(size=(24, 6)) + 1.0)
    groups = [i // 4 for i in range(24)]
    estimate = pair_estimate(cosines(features, features), groups, samples=500, seed=0)
    assert estimate.low < estimate.mean < estimate.high
