"""How late one signal is against another, what both share then, and how alike they are.

Arrays: signals `[T, ...]` along time, such as samples `[T]` or a mel `[F, M]`.
"""

import numpy as np


def cross_correlation(
    late: np.ndarray, reference: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """The lags `[L]` within +-most, and sum_t late[t + lag] reference[t] at each of them `[L]`.

    The products are summed over all axes. Lags at which the signals share no sample are left out.
    The lags begin at 0, and the negative ones follow.
    """
    size = 1 << (len(late) + len(reference)).bit_length()
    of_late, of_reference = (np.fft.rfft(each, size, axis=0) for each in (late, reference))
    products = (of_late * np.conj(of_reference)).reshape(size // 2 + 1, -1).sum(axis=1)
    lags = np.r_[0 : min(most, len(late) - 1) + 1, -min(most, len(reference) - 1) : 0]
    return lags, np.fft.irfft(products, size)[lags]


def overlap(late: np.ndarray, reference: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """The parts that both signals have, where `late` is `lag` samples or frames late."""
    late, reference = late[max(0, lag) :], reference[max(0, -lag) :]
    shared = min(len(late), len(reference))
    return late[:shared], reference[:shared]


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation `[...]` of two signals `[T, ...]` over time; NaN if one is constant."""
    first, second = (each - each.mean(axis=0) for each in (first, second))
    norms = np.sqrt((first * first).sum(axis=0) * (second * second).sum(axis=0))
    both = (first * second).sum(axis=0)
    return np.where(norms > 1e-9, both / np.maximum(norms, 1e-30), np.nan)
