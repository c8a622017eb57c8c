"""Lags and correlations against sums over the samples, one by one."""

import numpy as np
import pytest

from waveglow_jax.audio.correlation import cross_correlation, overlap, pearson

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bands", [(), (3,)])
@pytest.mark.parametrize("lengths", [(20, 20), (5, 33), (33, 5), (1, 9)])
@pytest.mark.parametrize("most", [0, 4, 100])
def test_cross_correlation(lengths, bands, most):
    late, reference = (RNG.normal(size=(length, *bands)) for length in lengths)
    lags, found = cross_correlation(late, reference, most)
    shared = [lag for lag in range(-most, most + 1) if -lengths[1] < lag < lengths[0]]
    assert sorted(lags) == shared and lags[0] == 0
    for lag, value in zip(lags, found, strict=True):
        products = [
            np.sum(late[t + lag] * reference[t])
            for t in range(lengths[1])
            if 0 <= t + lag < lengths[0]
        ]
        assert value == pytest.approx(sum(products), abs=1e-12)


@pytest.mark.parametrize("lag", [-3, 0, 4])
def test_the_lag_is_found_and_undone(lag):
    signal = RNG.normal(size=(50, 2))
    late, reference = signal[max(0, -lag) : 40], signal[max(0, lag) :]
    lags, found = cross_correlation(late, reference, 8)
    assert lags[np.argmax(found)] == lag
    np.testing.assert_array_equal(*overlap(late, reference, lag))
    assert len(overlap(late, reference, lag)[0]) == 40 - abs(lag)


def test_signals_that_share_nothing():
    assert [len(each) for each in overlap(np.ones(3), np.ones(9), 5)] == [0, 0]


def test_pearson():
    first, second = RNG.normal(size=(2, 30, 4))
    first[:, 2] = 0.1
    found = pearson(first, second)
    assert np.isnan(found[2])
    for band in (0, 1, 3):
        expected = np.corrcoef(first[:, band], second[:, band])[0, 1]
        assert found[band] == pytest.approx(expected, rel=1e-12)
