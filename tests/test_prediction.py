"""Whitening by linear prediction, compared with SciPy and autodiff's Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.signal

from waveglow_jax.config import Config, config_from_dict
from waveglow_jax.flow.bijections import total_log_det
from waveglow_jax.flow.whitening import (
    Predictor,
    _predictors,
    levinson,
    power_at_blocks,
    prediction_forward,
    prediction_inverse,
    predictor_of_mel,
)

FRAMES, HOP = 3, 64


def config_of(block: int, order: int) -> Config:
    return config_from_dict(
        {
            "waveglow_config": {
                "n_mel_channels": 10,
                "mel_whitening": {"block": block, "order": order},
            },
            "data_config": {
                "segment_length": 128,
                "hop_length": HOP,
                "filter_length": 256,
                "win_length": 256,
            },
        }
    )


def summed(result, mask=None):
    y, log_det = result
    assert log_det.shape == (len(y), log_det.shape[1])
    return y, total_log_det(log_det, log_det.shape, mask)


def random_mel(batch: int = 2, seed: int = 0) -> np.ndarray:
    tilt = np.linspace(0, -6, 10)
    return tilt + np.random.default_rng(seed).normal(size=(batch, FRAMES, 10))


@pytest.mark.parametrize("order", [2, 7, 40])
def test_levinson_solves_the_normal_equations(order):
    x = np.random.default_rng(1).normal(size=4000)
    x = scipy.signal.lfilter([1], [1, -0.9, 0.4], x)
    lags = np.array([x[: len(x) - k] @ x[k:] for k in range(order + 1)]) / len(x)
    with jax.enable_x64(True):
        taps, variance = levinson(jnp.asarray(lags)[None], jnp.zeros(1))
    expected = scipy.linalg.solve_toeplitz(lags[:-1], lags[1:])
    np.testing.assert_allclose(taps[0], np.r_[1, -expected], atol=1e-10)
    np.testing.assert_allclose(variance[0], lags[0] - expected @ lags[1:], rtol=1e-10)


@pytest.mark.slow
def test_predictor_is_that_of_the_spectrum():
    """Unit-variance noise through the inverse filter has the all-pole form of the mel's
    spectrum."""
    config = config_of(16, 24)
    with jax.enable_x64(True):
        mel = jnp.asarray(random_mel())
        predictor = jax.tree.map(np.asarray, predictor_of_mel(mel, config, FRAMES * HOP))
        floor = config.waveglow.mel_whitening.floor
        power = np.asarray(power_at_blocks(mel, config, FRAMES * HOP)) + floor**2 + 1e-9
    for taps, gain, spectrum in zip(predictor.taps[0], predictor.gain[0], power[0], strict=True):
        # Prediction finds the all-pole filter of that order with the least error after the
        # pre-emphasis, so its first lags are those of the emphasised spectrum.
        all_pole = gain / np.abs(np.fft.rfft(taps, 8192))
        ours = (all_pole * np.abs(np.fft.rfft([1, -0.95], 8192))) ** 2
        theirs = spectrum * np.abs(np.fft.rfft([1, -0.95], 256)) ** 2
        ours, theirs = (np.fft.irfft(p)[:24] for p in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=1e-8 * theirs[0])
        assert np.abs(np.roots(taps)).max() < 1


@pytest.mark.slow
def test_groups_of_any_size_give_the_same_predictors():
    """CPUs compute few blocks at once and accelerators thousands; in float64 the results agree."""
    config = config_of(16, 24)
    mels = np.concatenate(random_mel(7, seed=5))  # 21 blocks: two groups, the second not filled
    with jax.enable_x64(True):
        few, many = (_predictors(jnp.asarray(mels), config, at_once) for at_once in (16, 64))
    for a, b in zip(few, many, strict=True):
        assert len(a) == len(mels)
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "order"),
    [(8, 4), (16, 24), (64, 17)],
)
def test_both_ways_and_the_jacobian(block, order):
    config = config_of(block, order)
    samples = FRAMES * HOP
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        predictor = predictor_of_mel(jnp.asarray(random_mel()), config, samples)
        x = jnp.asarray(rng.normal(size=(2, samples)))
        y, log_det = summed(prediction_forward(predictor, x))
        again, inverse_log_det = summed(prediction_inverse(predictor, y))
        np.testing.assert_allclose(again, x, atol=1e-11)
        np.testing.assert_allclose(log_det, -inverse_log_det, rtol=1e-12)
        back, _ = prediction_forward(predictor, prediction_inverse(predictor, x)[0])
        np.testing.assert_allclose(back, x, atol=1e-11)
        second = jax.tree.map(lambda leaf: leaf[1:], predictor)
        for direction, expected in (
            (prediction_forward, log_det),
            (prediction_inverse, inverse_log_det),
        ):

            def alone(signal, direction=direction):
                return direction(second, signal[None])[0][0]

            jacobian = jax.jacrev(alone)(x[1])
            assert expected[1] == pytest.approx(np.linalg.slogdet(jacobian)[1], abs=1e-9)
            assert abs(expected[1]) > 1


def test_of_constant_taps_it_is_a_plain_filter():
    taps = np.array([1.0, -1.2, 0.5, 0.1])
    blocks, block = 6, 8
    rng = np.random.default_rng(3)
    y = rng.normal(size=(1, blocks * block))
    with jax.enable_x64(True):
        predictor = Predictor(
            jnp.asarray(np.tile(taps, (1, blocks, 1))), jnp.full((1, blocks), 0.3)
        )
        x, log_det = summed(prediction_inverse(predictor, jnp.asarray(y)))
    np.testing.assert_allclose(x[0], scipy.signal.lfilter([0.3], taps, y[0]), atol=1e-12)
    assert log_det[0] == pytest.approx(blocks * block * np.log(0.3))


@pytest.mark.slow
def test_a_clip_with_its_past_is_part_of_the_whole():
    config = config_of(16, 24)
    samples = FRAMES * HOP
    x = np.random.default_rng(4).normal(size=(2, samples)).astype(np.float32)
    predictor = predictor_of_mel(jnp.asarray(random_mel(), jnp.float32), config, samples)
    whole, _ = prediction_forward(predictor, jnp.asarray(x))
    later = jax.tree.map(lambda leaf: leaf[:, 5:], predictor)
    clip, _ = prediction_forward(later, jnp.asarray(x[:, 80:]), jnp.asarray(x[:, 56:80]))
    np.testing.assert_allclose(clip, whole[:, 80:], rtol=1e-4, atol=1e-4)
    back, _ = prediction_inverse(predictor, jnp.asarray(x))
    piece, _ = prediction_inverse(later, jnp.asarray(x[:, 80:]), back[:, 56:80])
    np.testing.assert_allclose(piece, back[:, 80:], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_mask_counts_only_the_signals_own_blocks():
    config = config_of(16, 24)
    predictor = predictor_of_mel(jnp.asarray(random_mel(), jnp.float32), config, FRAMES * HOP)
    x = jnp.ones((2, FRAMES * HOP))
    mask = jnp.asarray((np.arange(12) < 7)[None].repeat(2, 0), jnp.float32)
    cut = jax.tree.map(lambda leaf: leaf[:, :7], predictor)
    _, masked = summed(prediction_forward(predictor, x), mask)
    _, alone = summed(prediction_forward(cut, x[:, : 7 * 16]))
    np.testing.assert_allclose(masked, alone, rtol=1e-6)
    _, back = summed(prediction_inverse(predictor, x), mask)
    np.testing.assert_allclose(back, -alone, rtol=1e-6)


@pytest.mark.slow
def test_stable_and_invertible_in_float32_for_any_mel():
    """Under loud, silent and extremely coloured mels, the filter stays minimum-phase."""
    config = config_of(16, 64)
    rng = np.random.default_rng(5)
    mels = np.stack(
        [
            np.full((FRAMES, 10), np.log(1e-5)),
            np.full((FRAMES, 10), 4.0),
            np.linspace(6, -11, 10)[None].repeat(FRAMES, 0),
            np.where(np.arange(10) == 3, 5.0, -11.5)[None].repeat(FRAMES, 0),
            rng.uniform(-11.5, 5, (FRAMES, 10)),
        ]
    ).astype(np.float32)
    predictor = predictor_of_mel(jnp.asarray(mels), config, FRAMES * HOP)
    assert np.isfinite(predictor.taps).all()
    poles = [np.abs(np.roots(taps)).max() for taps in np.asarray(predictor.taps).reshape(-1, 65)]
    assert max(poles) < 1
    assert (np.asarray(predictor.gain) > 0).all()
    noise = jnp.asarray(rng.normal(size=(5, FRAMES * HOP)), jnp.float32)
    x, _ = prediction_inverse(predictor, noise)
    again, _ = prediction_forward(predictor, x)
    assert np.isfinite(x).all()
    # The last mel's filters change extremely from block to block, so it is left out.
    np.testing.assert_allclose(again[:4], noise[:4], atol=0.1)
