"""Every bijection held against autodiff's Jacobian; whitening against its covariance in NumPy."""

from functools import cache

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.linalg
import scipy.signal
from compiling import quick_jit

from waveglow_jax.config import Config, config_from_dict
from waveglow_jax.flow.bijections import (
    coupling_forward,
    coupling_inverse,
    invertible_conv_forward,
    invertible_conv_inverse,
    log_det_by_frame,
    squeeze,
    total_log_det,
    unsqueeze,
)
from waveglow_jax.flow.whitening import (
    PRE_EMPHASIS,
    prediction_forward,
    prediction_inverse,
    predictor_of_mel,
    whitening_factors,
    whitening_forward,
    whitening_inverse,
)

BATCH = 2

jitted_factors = quick_jit(whitening_factors, static_argnums=(1, 2))


def whitening_config(block: int) -> Config:
    return config_from_dict(
        {
            "waveglow_config": {"n_mel_channels": 10, "mel_whitening": {"block": block}},
            "data_config": {
                "segment_length": 128,
                "hop_length": 64,
                "filter_length": 256,
                "win_length": 256,
            },
        }
    )


def total(result, mask=None):
    """A direction's `(y, local log_det)` with the log-determinant summed to `[B]`."""
    y, log_det = result
    steps = y.shape[1] if log_det.ndim == 0 else log_det.shape[1]
    return y, total_log_det(log_det, (len(y), steps), mask)


# Each constructor gives (params, forward(params, x), inverse(params, y), shape of x, of y); params
# are float64 NumPy arrays.


def conv(sign):
    def construct():
        rng = np.random.default_rng(3)
        weight = 1.3 * np.linalg.qr(rng.normal(size=(6, 6)))[0] + 0.3 * rng.normal(size=(6, 6))
        weight[0] *= sign * np.sign(np.linalg.det(weight))
        assert np.sign(np.linalg.det(weight)) == sign

        def inverse(weight, y):
            return total(invertible_conv_inverse(jnp.linalg.inv(weight), y))

        def forward(weight, x):
            return total(invertible_conv_forward(weight, x))

        return weight, forward, inverse, (BATCH, 5, 6), (BATCH, 5, 6)

    return construct


def mlp(params, a):
    """Any function of the untouched half will do: this one mixes channels and all time steps."""
    hidden = jnp.tanh(a @ params["in"] + params["bias"][None, None])
    mixed = jnp.einsum("mn,bnh->bmh", params["time"], hidden)
    shift, log_s = jnp.split(mixed @ params["out"], 2, axis=-1)
    return shift, log_s


def coupling():
    rng = np.random.default_rng(4)
    shapes = {"in": (3, 7), "bias": (7,), "time": (5, 5), "out": (7, 6)}
    params = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}

    def forward(params, x):
        return total(coupling_forward(lambda a: mlp(params, a), x))

    def inverse(params, y):
        return total(coupling_inverse(lambda a: mlp(params, a), y))

    return params, forward, inverse, (BATCH, 5, 6), (BATCH, 5, 6)


def whitening(block):
    def construct():
        config = whitening_config(block)
        mel = -2 + 1.5 * np.random.default_rng(5).normal(size=(BATCH, 3, 10))

        def forward(mel, x):
            return total(whitening_forward(whitening_factors(mel, config, x.shape[1]), x))

        def inverse(mel, y):
            return total(whitening_inverse(whitening_factors(mel, config, y.shape[1]), y))

        return mel, forward, inverse, (BATCH, 128), (BATCH, 128)

    return construct


def recurrent(params, a):
    """A scan over time whose parameters are a list and a tuple with a hole in it."""
    (w_in, nothing, w_state), [out] = params
    assert nothing is None

    def step(state, at_time):
        state = jnp.tanh(at_time @ w_in + state @ w_state)
        return state, state

    _, states = jax.lax.scan(step, jnp.zeros((len(a), 4), a.dtype), jnp.moveaxis(a, 1, 0))
    shift, log_s = jnp.split(jnp.moveaxis(states, 0, 1) @ out, 2, axis=-1)
    return shift, log_s


def swapped_coupling():
    rng = np.random.default_rng(19)
    params = (
        (0.7 * rng.normal(size=(3, 4)), None, 0.5 * rng.normal(size=(4, 4))),
        [0.8 * rng.normal(size=(4, 6))],
    )

    def forward(params, x):
        return total(coupling_forward(lambda a: recurrent(params, a), x, swapped=True))

    def inverse(params, y):
        return total(coupling_inverse(lambda a: recurrent(params, a), y, swapped=True))

    return params, forward, inverse, (BATCH, 5, 6), (BATCH, 5, 6)


def prediction():
    config = config_from_dict(
        {
            "waveglow_config": {"n_mel_channels": 10, "mel_whitening": {"block": 16, "order": 12}},
            "data_config": {
                "segment_length": 128,
                "hop_length": 64,
                "filter_length": 256,
                "win_length": 256,
            },
        }
    )
    mel = -2 + 1.5 * np.random.default_rng(20).normal(size=(BATCH, 2, 10))

    def forward(mel, x):
        return total(prediction_forward(predictor_of_mel(mel, config, x.shape[1]), x))

    def inverse(mel, y):
        return total(prediction_inverse(predictor_of_mel(mel, config, y.shape[1]), y))

    return mel, forward, inverse, (BATCH, 64), (BATCH, 64)


def squeezing():
    def forward(_, x):
        return squeeze(x, 6), jnp.zeros(x.shape[:1], x.dtype)

    def inverse(_, y):
        return unsqueeze(y), jnp.zeros(y.shape[:1], y.dtype)

    return {}, forward, inverse, (BATCH, 30), (BATCH, 5, 6)


BIJECTIONS = {
    "conv, det > 0": conv(1),
    "conv, det < 0": conv(-1),
    "coupling": coupling,
    "coupling, swapped": swapped_coupling,
    "prediction": prediction,
    "whitening 4": whitening(4),
    "whitening 16": whitening(16),
    "whitening 64": whitening(64),
    "squeeze": squeezing,
}
every_bijection = pytest.mark.parametrize("name", BIJECTIONS)


@cache
def jitted(name):
    """The case with both directions compiled; jax.jit keeps float32 and float64 apart."""
    params, forward, inverse, x_shape, y_shape = BIJECTIONS[name]()
    return params, jax.jit(forward), jax.jit(inverse), x_shape, y_shape


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def off(ours, theirs):
    theirs = np.asarray(theirs)
    assert np.shape(ours) == theirs.shape
    return np.max(np.abs(np.asarray(ours) - theirs)) / max(1.0, np.max(np.abs(theirs)))


def as_dtype(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


@every_bijection
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_round_trips_and_log_dets_cancel(name, dtype, tolerance):
    params, forward, inverse, x_shape, y_shape = jitted(name)
    with jax.enable_x64(dtype == "float64"):
        params, x, y = as_dtype((params, random(x_shape), random(y_shape, 1)), dtype)
        forth, log_det = forward(params, x)
        back, inverse_log_det = inverse(params, forth)
        assert forth.shape == y_shape
        assert forth.dtype == log_det.dtype == back.dtype == inverse_log_det.dtype == dtype
        assert log_det.shape == inverse_log_det.shape == (BATCH,)
        assert off(back, x) <= tolerance
        assert off(log_det + inverse_log_det, np.zeros(BATCH)) <= tolerance * (
            1 + np.max(np.abs(log_det))
        )
        there, inverse_log_det = inverse(params, y)
        again, log_det = forward(params, there)
        assert off(again, y) <= tolerance
        assert off(log_det + inverse_log_det, np.zeros(BATCH)) <= tolerance * (
            1 + np.max(np.abs(log_det))
        )


@every_bijection
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_log_det_is_that_of_the_jacobian(name, direction):
    params, forward, inverse, x_shape, y_shape = jitted(name)
    function, shape = (forward, x_shape) if direction == "forward" else (inverse, y_shape)
    with jax.enable_x64(True):
        params, x = as_dtype((params, random(shape, 2)), "float64")
        jacobian = quick_jit(jax.jacrev(lambda x: function(params, x)[0].reshape(BATCH, -1)))(x)
        jacobian = np.asarray(jacobian).reshape(BATCH, x[0].size, BATCH, x[0].size)
        log_det = np.asarray(function(params, x)[1])
    for i in range(BATCH):
        assert log_det[i] == pytest.approx(np.linalg.slogdet(jacobian[i, :, i])[1], abs=1e-8)
        assert not np.any(jacobian[i, :, 1 - i]), "one of the batch hears another"
    if name != "squeeze":
        assert np.all(np.abs(log_det) > 0.1), "too near to zero to tell a missing log_det"


@pytest.mark.parametrize("name", ["conv, det < 0", "coupling", "whitening 16", "squeeze"])
def test_vmap_is_a_loop(name):
    params, forward, inverse, x_shape, y_shape = jitted(name)
    with jax.enable_x64(True):
        params = as_dtype(params, "float64")
        for direction, shape in ((forward, x_shape), (inverse, y_shape)):
            x = jnp.asarray(random((3, *shape), 6))
            mapped, mapped_log_det = jax.vmap(direction, in_axes=(None, 0))(params, x)
            for i in range(3):
                y, log_det = direction(params, x[i])
                assert off(mapped[i], y) <= 1e-9
                assert off(mapped_log_det[i], log_det) <= 1e-9


def dtypes_within(jaxpr) -> set[str]:
    """The dtypes of all floating-point values that a program computes, in loops and calls too."""
    found = set()
    for equation in jaxpr.eqns:
        kinds = [str(variable.aval.dtype) for variable in equation.outvars]
        found |= {kind for kind in kinds if kind.startswith("float")}
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found |= dtypes_within(inner)
    return found


@pytest.mark.slow
@every_bijection
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_value_has_another_dtype_where_float64_is_allowed(name, dtype):
    params, forward, inverse, x_shape, y_shape = BIJECTIONS[name]()
    with jax.enable_x64(True):
        for direction, shape in ((forward, x_shape), (inverse, y_shape)):
            at = as_dtype((params, random(shape)), dtype)

            def total(at, direction=direction):
                return sum(map(jnp.sum, direction(*at)))

            # Rounding of an intermediate value would show nowhere else.
            assert dtypes_within(jax.make_jaxpr(jax.value_and_grad(total))(at).jaxpr) <= {dtype}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv, det < 0", "coupling, swapped", "prediction"])
def test_vmap_of_grad_under_jit_is_a_loop(name):
    params, forward, _, x_shape, _ = BIJECTIONS[name]()
    with jax.enable_x64(True):
        params = as_dtype(params, "float64")
        slope = jax.grad(lambda params, x: jnp.sum(forward(params, x)[0] ** 2), argnums=(0, 1))
        x = jnp.asarray(random((3, *x_shape), 21))
        mapped = quick_jit(jax.vmap(slope, in_axes=(None, 0)))(params, x)
        alone = quick_jit(slope)
        for i in range(3):
            for ours, theirs in zip(
                *map(jax.tree.leaves, (mapped, alone(params, x[i]))), strict=True
            ):
                assert off(ours[i], theirs) <= 1e-9


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("log_s", [-80.0, -30.0, 0.0, 30.0, 80.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_scales_are_finite_or_honestly_infinite(direction, log_s, dtype):
    """Compared with float64, in which nothing overflows here; values beyond float32 are
    infinite."""
    function = {"forward": coupling_forward, "inverse": coupling_inverse}[direction]
    halves = np.array([[0, 0], [1, 0], [1, 1e-30], [1, -1], [1, 1e6], [1, -1e30]], np.float32)
    largest = float(jnp.finfo(dtype).max)

    def value(at):
        return total(function(lambda a: (at["shift"], at["log_s"]), at["x"]))

    def slopes(at):
        y, back = jax.vjp(value, at)
        # Cotangents of ones; and zeros with one 1, for which 0 * inf would be NaN.
        ones = jax.tree.map(jnp.ones_like, y)
        one = jax.tree.map(jnp.zeros_like, y)
        return y, back(ones)[0], back((one[0].at[0, 1, 0].set(1), one[1]))[0]

    with jax.enable_x64(True):
        at = {"x": halves[None], "shift": np.zeros((1, 6, 1)), "log_s": np.full((1, 6, 1), log_s)}
        theirs = quick_jit(slopes)(as_dtype(at, "float64"))
        ours = quick_jit(slopes)(as_dtype(at, dtype))
    for found, exact in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        found, exact = np.asarray(found, np.float64), np.asarray(exact)
        assert np.isfinite(exact).all()
        held = np.abs(exact) <= largest
        np.testing.assert_allclose(found[held], exact[held], rtol=2e-5, atol=1e-37)
        np.testing.assert_array_equal(found[~held], np.inf * np.sign(exact[~held]))


@pytest.mark.parametrize("name", ["conv, det < 0", "coupling", "squeeze"])
def test_jit_changes_nothing(name):
    params, forward, inverse, x_shape, y_shape = jitted(name)
    _, eager_forward, eager_inverse, _, _ = BIJECTIONS[name]()
    with jax.enable_x64(True):
        params, x, y = as_dtype((params, random(x_shape), random(y_shape, 1)), "float64")
        for compiled, eager, at in ((forward, eager_forward, x), (inverse, eager_inverse, y)):
            for ours, theirs in zip(compiled(params, at), eager(params, at), strict=True):
                assert off(ours, theirs) <= 1e-12


@pytest.mark.slow
@every_bijection
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_are_those_of_finite_differences(name, direction):
    params, forward, inverse, x_shape, y_shape = jitted(name)
    function, shape = (forward, x_shape) if direction == "forward" else (inverse, y_shape)
    rng = np.random.default_rng(7)
    with jax.enable_x64(True):
        at = as_dtype({"params": params, "x": random(shape, 8)}, "float64")

        # Scaled to unit size; otherwise sin oscillates too fast for a finite difference.
        size = np.max(np.abs(function(at["params"], at["x"])[0]))

        @quick_jit
        @jax.value_and_grad
        def objective(at):
            y, log_det = function(at["params"], at["x"])
            return jnp.sum(jnp.sin(y / size)) + jnp.sum(log_det * jnp.arange(1.0, BATCH + 1))

        gradient = objective(at)[1]
        leaves, tree = jax.tree.flatten(at)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
        # Each parameter is tested by itself, so that none is hidden by a larger one.
        for k, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
            towards = rng.normal(size=leaf.shape)
            towards /= np.linalg.norm(towards)

            def moved(step, k=k, leaf=leaf, towards=towards):
                moved = [*leaves[:k], leaf + step * towards, *leaves[k + 1 :]]
                return objective(jax.tree.unflatten(tree, moved))[0]

            # A difference of fourth order allows a long step: the rounding of the Cholesky
            # factors would dominate a short one.
            step = 1e-3
            near, far = (moved(s) - moved(-s) for s in (step, 2 * step))
            numeric = (8 * near - far) / (12 * step)
            assert float(np.sum(slope * towards)) == pytest.approx(
                float(numeric), rel=1e-6, abs=1e-6
            )


MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.float64)


@pytest.mark.parametrize("dtype", [np.float64, bool, np.int32])
def test_a_masked_conv_counts_the_steps_within(dtype):
    weight = np.random.default_rng(17).normal(size=(6, 6))
    of_step = np.linalg.slogdet(weight)[1]
    with jax.enable_x64(True):
        x = jnp.asarray(random((2, 5, 6), 18))
        mask = jnp.asarray(MASK, dtype)
        y, log_det = total(invertible_conv_forward(jnp.asarray(weight), x), mask)
        inverse = jnp.asarray(np.linalg.inv(weight))
        _, back = total(invertible_conv_inverse(inverse, y), mask)
        np.testing.assert_allclose(log_det, of_step * np.array([3, 5]), rtol=1e-12)
        np.testing.assert_allclose(back, -of_step * np.array([3, 5]), rtol=1e-12)


def test_a_masked_coupling_counts_the_steps_within():
    rng = np.random.default_rng(9)
    weight = rng.normal(size=(3, 6))

    def conditioner(a):
        shift, log_s = jnp.split(jnp.tanh(a @ jnp.asarray(weight)), 2, axis=-1)
        return shift, log_s

    with jax.enable_x64(True):
        x = jnp.asarray(random((2, 5, 6), 10))
        for direction, sign in ((coupling_forward, 1), (coupling_inverse, -1)):
            for mask in (MASK, MASK.astype(bool), MASK.astype(np.int32)):
                log_det = total(direction(conditioner, x), jnp.asarray(mask))[1]
                for i, n in enumerate((3, 5)):
                    log_s = np.tanh(np.asarray(x)[i, :n, :3] @ weight)[:, 3:]
                    assert float(log_det[i]) == pytest.approx(sign * log_s.sum(), abs=1e-12)


def test_what_is_not_finite_outside_the_mask_is_not_counted():
    x = jnp.ones((2, 5, 6))
    log_s = jnp.where(MASK[:, :, None] > 0, jnp.float32(0.5), jnp.inf) * jnp.ones(3)[None, None]
    for direction, sign in ((coupling_forward, 1), (coupling_inverse, -1)):
        coupled = direction(lambda a: (0 * a, log_s), x)
        log_det = total(coupled, jnp.asarray(MASK, "float32"))[1]
        np.testing.assert_allclose(log_det, sign * 0.5 * 3 * np.array([3, 5]))


def test_a_masked_whitening_counts_the_blocks_within():
    config = whitening_config(16)
    mel = np.random.default_rng(11).normal(size=(2, 3, 10))
    with jax.enable_x64(True):
        factors = jitted_factors(jnp.asarray(mel), config, 5 * 16)
        x = jnp.asarray(random((2, 5 * 16), 12))
        for direction, sign in ((whitening_forward, -1), (whitening_inverse, 1)):
            log_det = total(direction(factors, x), jnp.asarray(MASK))[1]
            for i, n in enumerate((3, 5)):
                alone = [np.linalg.slogdet(np.asarray(factors)[i, k])[1] for k in range(n)]
                assert float(log_det[i]) == pytest.approx(sign * sum(alone), abs=1e-9)


@pytest.mark.parametrize("per_part", [1, 3])
def test_a_mask_of_steps_selects_the_parts_of_any_length(per_part):
    """Parts of several steps each, and several parts per step; whatever is outside is not read."""
    rng = np.random.default_rng(22)
    ends = np.array([2, 5])
    for parts, steps in ((5, 5 * 4), (5 * 4, 5)):
        shape = (2, parts) if per_part == 1 else (2, parts, per_part)
        local = rng.normal(size=shape)
        mask = np.arange(steps) < ends[:, None] * steps // 5
        outside = np.arange(parts) >= ends[:, None] * parts // 5
        expected = [local[i, : ends[i] * parts // 5].sum() for i in range(2)]
        local[outside] = np.nan
        with jax.enable_x64(True):
            found = total_log_det(jnp.asarray(local), (2, steps), jnp.asarray(mask, "float32"))
            assert found.dtype == "float64"
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_frames_add_up_to_the_total():
    rng = np.random.default_rng(23)
    for shape in ((), (2, 12), (2, 24), (2, 12, 3), (2, 6, 4)):
        local = jnp.asarray(rng.normal(size=shape), "float32")
        by_frame = jnp.broadcast_to(log_det_by_frame(local, 12, 3), (2, 3))
        np.testing.assert_allclose(by_frame.sum(axis=1), total_log_det(local, (2, 12)), rtol=1e-5)
    np.testing.assert_allclose(log_det_by_frame(local, 12, 3)[1, 2], local[1, 4:].sum(), rtol=1e-5)


def covariance_of_block(mel, config, k):
    """`[block, block]`: block k's covariance, step by step as the whitening is defined."""
    data, white = config.data, config.waveglow.mel_whitening
    bins = data.filter_length // 2 + 1
    filters = librosa.filters.mel(
        sr=data.sampling_rate,
        n_fft=data.filter_length,
        n_mels=config.waveglow.n_mel_channels,
        fmin=data.mel_fmin,
        fmax=data.mel_fmax,
    ).astype(np.float64)
    centre = (k + 0.5) * white.block / data.hop_length
    band = np.zeros(len(filters))
    for m in range(len(filters)):
        at_centre = np.interp(centre, np.arange(len(mel)), mel[:, m])
        band[m] = np.exp(at_centre) / sum(filters[m])
    power = np.zeros(bins)
    window = scipy.signal.get_window("hann", data.win_length, fftbins=True)
    for b in range(bins):
        covers = [m for m in range(len(filters)) if filters[m, b] > 0]
        magnitude = 0.0
        if covers:
            magnitude = np.average(band[covers], weights=filters[covers, b])
        power[b] = magnitude**2 * (4 / np.pi) / np.sum(window**2) + white.floor**2
    # The inverse transform of a real, even spectrum: a sum of cosines, inner bins on both sides.
    lags, inner = np.arange(white.block), np.arange(1, bins - 1)
    r = power[0] + power[-1] * np.cos(np.pi * lags)
    r += 2 * np.cos(2 * np.pi * np.outer(lags, inner) / data.filter_length) @ power[1:-1]
    r /= data.filter_length
    return scipy.linalg.toeplitz(r) + 1e-9 * np.eye(white.block)


def pre_emphasis(block):
    return np.eye(block) - 0.95 * np.eye(block, k=-1)


def test_the_pre_emphasis_is_the_documented_one():
    assert PRE_EMPHASIS == 0.95


@pytest.mark.parametrize("block", [4, 16, 64])
def test_whitening_factors_are_those_of_the_covariance(block):
    config = whitening_config(block)
    mel = -3 + 2 * np.random.default_rng(13).normal(size=(2, 2, 10))
    with jax.enable_x64(True):
        factors = np.asarray(jitted_factors(jnp.asarray(mel), config, 128))
    emphasis = pre_emphasis(block)
    for i in range(2):
        # The last blocks lie beyond the last frame's centre: they repeat it.
        for k in range(128 // block):
            theirs = covariance_of_block(mel[i], config, k)
            assert not np.any(np.triu(factors[i, k], 1))
            lower = np.linalg.solve(emphasis, factors[i, k])
            assert off((lower @ lower.T) / theirs[0, 0], theirs / theirs[0, 0]) <= 1e-10
            assert off(lower, np.linalg.cholesky(theirs)) <= 1e-8


def test_whitening_whitens_noise_of_its_covariance():
    config = whitening_config(16)
    blocks = 4000
    frame = -3 + 2 * np.random.default_rng(14).normal(size=10)
    # A constant mel, so that all blocks share one covariance.
    mel = np.tile(frame, (1, blocks * 16 // 64, 1))
    covariance = covariance_of_block(mel[0], config, 0)
    rng = np.random.default_rng(15)
    noise = rng.multivariate_normal(np.zeros(16), covariance, size=blocks, method="eigh")
    with jax.enable_x64(True):
        factors = jitted_factors(jnp.asarray(mel), config, blocks * 16)
        white, _ = whitening_forward(factors, jnp.asarray(noise.reshape(1, -1)))
    white = np.asarray(white).reshape(blocks, 16)
    assert np.max(np.abs(white.T @ white / blocks - np.eye(16))) <= 0.12
    coloured = noise / np.sqrt(covariance[0, 0])
    assert np.max(np.abs(coloured.T @ coloured / blocks - np.eye(16))) >= 0.4


@pytest.mark.slow
@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize(
    # Mels that fall by 52 and by 87 dB to the high bands, with formants; the second is at full
    # scale and worse than speech is: float32 loses there what the condition number says.
    ("fall", "formants", "level", "condition", "tolerance"),
    [(6, 1, 0, 1e5, 1e-5), (10, 1.5, 1, 1e6, 5e-4)],
)
def test_float32_suffices_for_whitening(block, fall, formants, level, condition, tolerance):
    white = {"mel_whitening": {"block": block}}
    config = config_from_dict({"waveglow_config": white, "data_config": {"segment_length": 2048}})
    band = np.arange(80)
    frame = level - fall * band / 79 + formants * np.cos(band / 4)
    mel = np.float32([frame, frame - 1, frame - 4, frame - 2, frame + 0.5])[None]
    assert np.linalg.cond(covariance_of_block(mel[0], config, 0)) > condition
    n = 512
    with jax.enable_x64(True):
        exact_factors = jitted_factors(jnp.asarray(mel, "float64"), config, n)
        audio, _ = whitening_inverse(exact_factors, jnp.asarray(random((1, n), 16)))
        audio = np.asarray(audio, np.float32)
        exact, exact_log_det = total(
            whitening_forward(exact_factors, jnp.asarray(audio, "float64"))
        )
        exact, exact_log_det = np.asarray(exact), float(exact_log_det[0])
    factors = jitted_factors(jnp.asarray(mel), config, n)
    y, log_det = total(whitening_forward(factors, jnp.asarray(audio)))
    back, _ = whitening_inverse(factors, y)
    assert y.dtype == log_det.dtype == back.dtype == "float32"
    assert np.max(np.abs(y - exact)) <= tolerance * np.max(np.abs(exact))
    assert float(log_det[0]) == pytest.approx(exact_log_det, rel=1e-5)
    # The inverse is exact whatever the condition, because it uses the same factors.
    assert np.max(np.abs(back - audio)) <= 2e-6 * np.max(np.abs(audio))
