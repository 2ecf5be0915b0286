"""Intervals and p of few seeds, against hand-computed numbers, scipy, and their own claims."""

from __future__ import annotations

import itertools
from typing import List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.comparison.bootstrap import (
    COVERAGE,
    NUM_RESAMPLES,
    bca_interval,
    resampled_means,
    sign_flip_p,
    smallest_p,
    standard_deviation,
)

SAMPLES = {
    "three": [0.3, -0.1, 1.2],
    "six": [0.31, -0.12, 1.25, 0.4, 0.77, 0.05],
    "skewed": [0.0, 0.01, 0.02, 0.03, 5.0],
    "negative": [-3.0, -2.5, -4.1, -2.9, -3.3, -2.2],
    "nine": [0.3, -0.1, 1.2, 0.9, 0.4, 0.35, -0.6, 2.0, 0.1],
}


class Resamples:
    """What scipy continues from: the resampled statistics."""

    def __init__(self, means: np.ndarray) -> None:
        self.bootstrap_distribution = means


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_bca_is_that_of_scipy_for_the_same_resamples(sample: List[float]) -> None:
    data = np.array(sample)
    means, _ = resampled_means(data)
    # n_resamples=0: scipy takes exactly the resamples that it is given.
    theirs = stats.bootstrap((data,), np.mean, n_resamples=0, method="BCa", bootstrap_result=Resamples(means))
    ours = bca_interval(sample)
    # Sums of the same values in another order are ties here, and by chance one or the other in scipy: up to 1e-2 of
    # the level, which moves an end by less than a percent of the sample's range.
    tolerance = 0.01 * float(np.ptp(data))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=tolerance)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=tolerance)


def test_bca_of_exact_binary_numbers_is_that_of_scipy_to_rounding() -> None:
    # Multiples of 1/64 are added without rounding, so that ties are ties for both.
    data = np.array([0.25, -0.140625, 1.25, 0.390625, 0.765625, 0.0625])
    means, is_exact = resampled_means(data)
    theirs = stats.bootstrap((data,), np.mean, n_resamples=0, method="BCa", bootstrap_result=Resamples(means))
    ours = bca_interval(data.tolist())
    assert is_exact and ours.is_exact
    assert [ours.low, ours.high] == pytest.approx(list(theirs.confidence_interval), abs=1e-12)


def test_up_to_six_values_every_resample_is_there_once() -> None:
    data = np.array([1.0, 10.0, 100.0])
    means, is_exact = resampled_means(data)
    expected = [sum(draw) / 3 for draw in itertools.product(data, repeat=3)]
    assert is_exact
    np.testing.assert_allclose(sorted(means), sorted(expected), rtol=1e-15)
    assert len(resampled_means(np.arange(6.0))[0]) == 46_656


def test_seven_values_are_resampled_the_same_way_each_time() -> None:
    first, is_exact = resampled_means(np.arange(7.0))
    assert not is_exact
    assert len(first) == NUM_RESAMPLES
    np.testing.assert_array_equal(first, resampled_means(np.arange(7.0))[0])
    assert not bca_interval(list(range(7))).is_exact


@pytest.mark.parametrize(
    ("values", "reason"),
    [([], "0 of the 3 seeds"), ([1.0], "1 of the 3"), ([1.0, 2.0], "2 of the 3"), ([0.1 + 0.2, 0.3, 0.3], "equal")],
)
def test_where_there_is_no_interval_the_reason_is_given(values: List[float], reason: str) -> None:
    interval = bca_interval(values)
    assert (interval.low, interval.high) == (None, None)
    assert reason in interval.reason
    assert not interval.excludes_zero


@given(st.lists(st.integers(-100, 100), min_size=3, max_size=5).filter(lambda values: len(set(values)) > 1))
def test_an_interval_holds_for_shifted_scaled_and_mirrored_values(values: List[int]) -> None:
    interval = bca_interval(values)
    moved = bca_interval([3 * value + 7 for value in values])
    mirrored = bca_interval([-value for value in values])
    assert interval.low is not None and interval.high is not None
    assert min(values) <= interval.low <= interval.high <= max(values)
    assert [moved.low, moved.high] == pytest.approx([3 * interval.low + 7, 3 * interval.high + 7], abs=1e-9)
    assert [mirrored.low, mirrored.high] == pytest.approx([-interval.high, -interval.low], abs=1e-9)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_the_coverage_that_is_published_is_the_measured_one(count: int) -> None:
    trials = 400 if count == 6 else 1500
    generator = np.random.default_rng(count)
    covered = 0
    for _ in range(trials):
        interval = bca_interval(generator.normal(size=count).tolist())
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= 0 <= interval.high
    expected = COVERAGE[count]
    assert covered / trials == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / trials) + 0.005)


def test_sign_flip_p_of_three_by_hand() -> None:
    # Sums of +-1 +-2 +-3: 6, 4, 2, 0 and their negatives, 0 twice; as far as 6 are two of eight, as far as 4 four.
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    assert sign_flip_p([-1, 2, 3]) == 4 / 8
    assert sign_flip_p([1, 2, -3]) == 1.0


def test_sign_flip_p_counts_equal_sums_in_spite_of_rounding() -> None:
    # .1 + .2 - .3 is 6e-17 and .3 - .1 - .2 is -6e-17 or less: all eight signs of (.1, .2, .3) with sum 0 are ties.
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1.0
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=8))
def test_sign_flip_p_is_that_of_scipys_permutation_test(values: List[int]) -> None:
    # Each pair (value, 0), swapped or not, has the difference value or -value. Integers: ties are ties for both.
    theirs = stats.permutation_test(
        (np.array(values), np.zeros(len(values))),
        lambda x, y, axis: np.sum(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert sign_flip_p(values) == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 10])
def test_the_smallest_p_is_that_of_differences_of_one_sign(count: int) -> None:
    assert sign_flip_p([1.0 + n / 7 for n in range(count)]) == smallest_p(count) == 2.0 ** (1 - count)


def test_more_than_twenty_differences_are_flipped_at_random_and_the_observed_signs_count() -> None:
    # 25 differences of +-1 with sum 5: 15 or more, or 10 or fewer, of 25 fair coins. 2^20 draws: sd of .0005.
    values = [1.0] * 15 + [-1.0] * 10
    assert sign_flip_p(values) == pytest.approx(2 * stats.binom.sf(14, 25, 0.5), abs=2e-3)
    assert sign_flip_p([1.0] * 60) == 1 / (2**20 + 1)  # 2^-59 exactly, which no draw hits but the observed one does


def test_no_difference_is_an_error_and_one_value_has_no_deviation() -> None:
    with pytest.raises(ValueError, match="one or more"):
        sign_flip_p([])
    assert standard_deviation([1.0]) is None
    assert standard_deviation([1.0, 3.0]) == pytest.approx(2**0.5)
